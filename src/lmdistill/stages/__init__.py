"""The stages of a run, one file each; `lmdistill.pipeline` calls them in order."""
