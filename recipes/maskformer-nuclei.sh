#!/bin/sh
# MaskFormer on stained nuclei (dsb2018_he, CC0), from random weights: instances.
#
#   sh recipes/maskformer-nuclei.sh ../shared/data/dsb2018_he runs
#
# Photos hold up to a hundred nuclei, too many for a small network that sees 1/32 of the pixels: they are cut into tiles.
# The log beside this file was begun with 1,500 steps as their number and 2 threads, which its line "change" shows.
set -e
DATA=$1 RUNS=$2
python recipes/cut_tiles.py "$DATA" "$RUNS/nuclei-tiles" --side 128 --hold-out 5
everymask train maskformer "$RUNS/nuclei-tiles" --option name=nucleus --preset small \
  --config image_side=256 --config queries=40 --set targets=instance --set task=instance --set monitor=ap \
  --set batch_size=16 --set scale=0.8,1.4 --set flip_vertical=0.5 --set rotate90=0.5 --set lr=0.001 --set warmup=100 \
  --set clip=1 --set ema=0.998 --set weight_decay=0.01 --set steps=900 --set validate_every=300 \
  --out "$RUNS/nuclei"
everymask evaluate "$RUNS/nuclei" "$RUNS/nuclei-tiles" --split val --task instance
