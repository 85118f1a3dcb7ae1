"""The napari plugin: docks and layers over ``mepdiff_core``, which never imports it. Nothing here is heavy to import."""
