"""The commands, by what they are about; each parses, calls one service and renders what it returned."""
