//! NetworkPolicy semantics: evaluate, generate, explain, lint.
