"""
Scenes become tiles at sites.

``scenes`` opens what a config names, ``composites`` puts its dates together, ``tile_grids`` says
where tiles lie, ``cutting`` cuts them (by ``blocks``, or by ``warping`` from another grid), and
``ready_tiles`` reads those somebody else has cut; ``site_tiles`` does all of it for a data set.
"""
