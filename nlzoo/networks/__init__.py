"""Networks: torch modules in the order the data flows, no files, no choice of device."""
