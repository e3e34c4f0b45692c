"""What tests of several rooms share: small models, files, processes, and a GPU emulated on the CPU."""
