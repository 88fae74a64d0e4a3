package embedded

import (
	"context"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

const (
	verbRevert  = "revert"
	verbReverse = "reversal"
)

// Revert puts a volume back to what the split holds, at once whatever its size:
// the split's mirror becomes the volume's, and one of the volume's mirrors
// becomes a snapshot of what it held before, the safe point, with the tag
// "safe-<ID of the snapshot>". Further mirrors are filled in the background with
// what differs; until then the volume is unmirrored, which an event says.
//
// It is refused with kind Busy while the volume or the snapshot is in use, and
// with NotSynchronized while the volume is offline: nothing could be kept then.
// If the volume has grown since the split, it keeps its size, and what was
// added reads as zeroes. The snapshot is used up. Where it was made by reflink,
// so is the safe point, if the volume has a mirror in sync in its pool. After a crash the volume has
// the one content or the other.
func (a *Array) Revert(ctx context.Context, id driver.SnapshotID) (driver.Snapshot, error) {
	return a.turn(ctx, id, verbRevert, func(r *snapshotRecord) driver.Tag { return safeTag(r.ID) })
}

// Reverse exchanges the contents of a volume and a split of it: the volume goes
// on with what the split holds, and what it held becomes the split, under the
// same tag and with an identity of its own. In all else it is as Revert. Called
// again with the snapshot that was used up it returns the same split; called
// with that one it exchanges them back.
func (a *Array) Reverse(ctx context.Context, id driver.SnapshotID) (driver.Snapshot, error) {
	return a.turn(ctx, id, verbReverse, func(r *snapshotRecord) driver.Tag { return r.Tag })
}

// safeTag is the tag of what a volume held before it was reverted to a
// snapshot.
func safeTag(snapshot lun.Identity) driver.Tag { return driver.Tag("safe-" + snapshot.String()) }

var _ driver.Reverter = (*Array)(nil)
