"""From images and labels anywhere to one checked .hdf5."""
