from .map import MapResult as MapResult
from .map import write_map as write_map
from .options import MapOptions as MapOptions
