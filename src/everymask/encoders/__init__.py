"""Image encoders. Contract: ``forward(images, valid) -> features`` fine to coarse; ``.channels``, ``.strides``."""
