//! The virtio header in front of a TAP frame (`include/uapi/linux/virtio_net.h`).
