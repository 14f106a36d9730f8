from .page import LEVELS as LEVELS
from .page import export_page as export_page
from .page import viewer_page as viewer_page
from .serve import make_server as make_server
from .sites import SitesSeen as SitesSeen
from .widget import MapView as MapView
