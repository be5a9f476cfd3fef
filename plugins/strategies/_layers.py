"""The layers of a backbone, as the engine sees them."""

from automl_tl.layers import MOST_GROUPS as MOST_GROUPS
from automl_tl.layers import layer_groups as layer_groups
from automl_tl.layers import still_norms as still_norms
