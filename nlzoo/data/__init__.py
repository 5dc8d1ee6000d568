"""Reading videos: decoding, clip arithmetic, transforms and data sets."""
