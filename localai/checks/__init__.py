"""What `localai doctor` looks at, a module for each kind of thing; checks return `Finding`s and raise nothing."""
