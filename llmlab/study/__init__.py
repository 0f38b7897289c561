"""Studies: arms that differ by a named delta, matched, trained with paired seeds, and compared."""
