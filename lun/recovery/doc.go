// Package recovery brings the snapshots that a guest made inside its own disks
// back to the front.
//
// A split LUN is dirty: it shows the guest's volumes as they were when the
// array cut the mirror. The guest's own, clean snapshots lie inside it.
//
//	Verify    are the snapshots there that the guest reported, and valid?
//	OpenView  the LUN as it would be had each volume been put back to its snapshot
//	PrepareInPlace  the same on the devices themselves, resumable at every write
//	Inspect   all that is on the devices, for people and programs
//	Sum, Copy the content of one volume
//
// A view copies nothing and never writes to the split: opening one reads
// metadata and the snapshots' exception tables, whatever the size of the LUN.
// Its reads of an origin's extents come from the snapshot; the volume groups'
// metadata says that the snapshots were removed; everything else is the split
// itself. Writes go to an overlay that ends with the view.
//
// Of a thin snapshot nothing is redirected: the metadata gives its device to
// the origin's name. The origin's former device keeps its space in the pool
// until LVM changes the pool for the first time, and has it deleted then. An
// origin that is a mirror is linear in the view, on the leg that was in sync, so
// that no guest begins to resynchronise legs, of which all but one still hold
// the dirty content.
//
// A recovery in place writes what a thick snapshot preserves, and metadata; of a
// thin one, metadata alone. A shadow copy, and a snapshot of Btrfs, lie in the very
// volume that is written: that goes by way of a redo journal outside (lun/redo), and
// an interrupted run is ended by that journal alone. Of a shadow copy, what it knows
// only to have been free is not written. Both it and a view list what they rewrote, for
// whoever compares or resynchronises splits.
//
// A view may have an identity of its own, so that a host that has the original
// can have it as well: other identifiers in partition tables, labels and volume
// groups, and other names of the groups; see Identifier. It is made of the old one
// and a seed, so that a view that is opened again has the same. In place there is
// none: a label and a metadata text can't be changed at one moment.
//
// Price: one view is exact for the volumes that it names in View.Volumes. Each
// of these has its own instant, the one of its snapshot; all other volumes of
// the disk have the instant of the split.
package recovery
