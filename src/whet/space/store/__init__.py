"""The store on disk: immutable segments in a folder, one manifest, and the protocol of all stores."""
