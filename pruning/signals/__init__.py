"""The signals: each module measures neurons from one side and returns the table of its name."""
