//! Sources, precedence, values.
