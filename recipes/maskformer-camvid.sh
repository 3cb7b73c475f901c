#!/bin/sh
# MaskFormer on CamVid (non-commercial data: the weights are not passed on), from random weights on 2 cores.
#
#   sh recipes/maskformer-camvid.sh ../shared/data/camvid runs
#
# 1. 1,600 steps. Its log beside this file was begun with 2,800 as their number and 2 threads, as the lines of kind
#    "change" show.
# 2. The paper's question, mask or per-pixel classification, in 500 steps each: same data, views, backbone, pixel decoder.
set -e
DATA=$1 RUNS=$2
train() {
  everymask train maskformer "$DATA" --preset small --config background=null --set targets=semantic \
    --set batch_size=16 --set image_side=256 --set validate_side=480 --set scale=1.3,2.8 \
    --set lr=0.001 --set clip=1 --set ema=0.998 --set weight_decay=0.01 "$@"
}
train --set steps=1600 --set warmup=150 --set validate_every=400 --out "$RUNS/camvid-mask"
everymask evaluate "$RUNS/camvid-mask" "$DATA"

for HEAD in mask per-pixel; do
  train --config head=$HEAD --set steps=500 --set warmup=100 --set validate_every=250 --out "$RUNS/camvid-500-$HEAD"
done
python recipes/compare_runs.py "$DATA" "mask=$RUNS/camvid-500-mask" "per-pixel=$RUNS/camvid-500-per-pixel" \
  --pictures docs/images/camvid-heads
