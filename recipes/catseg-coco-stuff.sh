#!/bin/sh
# CAT-Seg on SigLIP 2 B/16, trained on COCO-Stuff as published (Cho et al. 2024, section 4.1): 80,000 steps of 4 crops of
# 384 pixels, AdamW 2e-4, towers x 0.01 (query and value projections alone), gradients clipped at 0.01. Step count, rates
# and views are the system's own training defaults (RECIPE in models/catseg.py). For one GPU of 40 GB or more; with less
# memory, --config train_words=64 and accumulate.
#
#   sh recipes/catseg-coco-stuff.sh COCO_STUFF_FOLDER RUN_FOLDER
set -e
everymask train catseg "$1" --out "$2" --preset siglip2-b16-384 --weights google/siglip2-base-patch16-384
everymask evaluate "$2" "$1" --split val --json "$2/coco-stuff.json"
