//! Cutting and joining packets: segmentation, coalescing, fragmentation, checksum completion.
