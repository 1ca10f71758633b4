"""orcalab: the missing workbook of Orca 2."""
__version__ = "0.1.0"
