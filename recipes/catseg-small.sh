#!/bin/sh
# The preset `small` (random towers, words by their hash) on the semantic truth of 100 COCO photos, then CamVid by its
# class names: shows that all of it runs and learns on two cores. Nothing is trained on CamVid, and this is no useful
# zero-shot model either: towers that never saw text paired with images cannot know a word they were not trained on.
# The log beside this file is that of the training; its figures are in docs/catseg.md.
#
#   sh recipes/catseg-small.sh ../shared/data/coco_panoptic_mini ../shared/data/camvid runs
set -e
COCO=$1 CAMVID=$2 RUNS=$3
train() {
  everymask train catseg "$COCO" --preset small --config background=null --config image_side=128 \
    --config train_words=16 --set batch_size=8 --set image_side=128 --set validate_side=128 --set max_val=25 \
    --set validate_every=150 --set lr=0.001 --set warmup=20 --set clip=1 --set ema=0.98 --set photometric=false \
    --set scale=1.0,1.5 "$@"
}
train --out "$RUNS/catseg-small" --set steps=900
train --out "$RUNS/catseg-untrained" --set steps=1 --set lr=1e-9
for run in catseg-untrained catseg-small; do
  everymask evaluate "$RUNS/$run" "$COCO" --split train --json "$RUNS/$run/train.json"
  everymask evaluate "$RUNS/$run" "$COCO" --split val --json "$RUNS/$run/val.json"
  everymask evaluate "$RUNS/$run" "$CAMVID" --split test --json "$RUNS/$run/camvid.json"
done
