"""Pages of HTML that need nothing but themselves: `blocks` of text and tables, `charts`, and the page of a `run`."""
