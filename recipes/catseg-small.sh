#!/bin/sh
# The preset `small` (random towers, words by their hash) on the semantic truth of 100 COCO photos, then CamVid by its
# class names: shows that all of it runs and learns on two cores. Nothing trained on CamVid, and no useful zero-shot
# model either: towers that never saw text paired with images cannot know a word they were not trained on.
#
#   sh recipes/catseg-small.sh ../shared/data/coco_panoptic_mini ../shared/data/camvid RUN_FOLDER
set -e
everymask train catseg "$1" --out "$3" --preset small --config background=null --set steps=400 \
  --set lr=0.001 --set warmup=20 --set clip=1 --set ema=0.98 --set image_side=256 --set validate_side=256 --set validate_every=200 --set max_val=20
everymask evaluate "$3" "$2" --json "$3/camvid.json"
