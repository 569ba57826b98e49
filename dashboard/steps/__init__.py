"""One module per step of the page: `build` draws it and connects it."""
