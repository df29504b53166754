"""One package per artifact format; each turns a stream of tensors into files a runtime loads."""
