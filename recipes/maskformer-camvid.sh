#!/bin/sh
# MaskFormer on CamVid (non-commercial data: the weights are not passed on), from random weights on 2 cores.
#
#   sh recipes/maskformer-camvid.sh ../shared/data/camvid runs
#
# The paper's question, mask or per-pixel classification, is asked by the second run: same data, same pixel decoder.
# The log beside this file is that of the first: 1,600 steps, begun with 2,800 as their number and 2 threads, which the
# lines of kind "change" show.
set -e
DATA=$1 RUNS=$2
train() {
  everymask train maskformer "$DATA" --preset small --config background=null --set targets=semantic \
    --set steps=1600 --set batch_size=16 --set image_side=256 --set validate_side=480 --set scale=1.3,2.8 \
    --set lr=0.001 --set warmup=150 --set clip=1 --set ema=0.998 --set weight_decay=0.01 --set validate_every=400 "$@"
}
train --out "$RUNS/camvid-mask"
train --out "$RUNS/camvid-pixel" --config head=per-pixel
python recipes/compare_runs.py "$DATA" "mask=$RUNS/camvid-mask" "per-pixel=$RUNS/camvid-pixel" \
  --pictures docs/images/camvid
