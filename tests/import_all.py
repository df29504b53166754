"""A program, for an interpreter of its own, that imports every module of edgeadapt."""

IMPORT_ALL = """
import importlib, pkgutil, edgeadapt
found, absent = 0, {}  # of modules that did not import: the library that each lacks
for module in pkgutil.walk_packages(edgeadapt.__path__, "edgeadapt."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        found += 1
    except ModuleNotFoundError as error:
        absent[module.name] = error.name
"""
