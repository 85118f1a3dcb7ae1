"""The napari plugin: widgets and layers over ``mepdiff_core``, which never imports it. It has no widget yet."""
