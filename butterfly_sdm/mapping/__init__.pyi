from .map import MapResult as MapResult
from .map import predict_map as predict_map
