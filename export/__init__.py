"""From a trained network to a file that proves itself on another machine."""
