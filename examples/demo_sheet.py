"""The picture of the README: held-out photos, their segments and their cut-outs, by the bundled model.

python examples/demo_sheet.py docs/images/demo.jpg
"""

import sys
from pathlib import Path

import numpy as np

import everymask as em
from everymask.demo import PHOTOS, with_matte
from everymask.drawing import contact_sheet, on_checkerboard
from everymask.image import list_images, write_jpeg

model = em.load("hybrid-pets")
results = [with_matte(model, path) for path in list_images(PHOTOS)]
pictures = [result.photo for result in results]
pictures += [result.overlay() for result in results]
pictures += [on_checkerboard(result.cutout()) for result in results]
captions = (
    [result.name.replace("_", " ") for result in results] + ["segments"] * len(results) + ["cut-out"] * len(results)
)
target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo.jpg")
write_jpeg(target, np.asarray(contact_sheet(pictures, captions, columns=len(results), cell=240)))
