package recovery

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/dmsnap"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// State is what a snapshot is found to be.
type State string

const (
	Valid      State = "valid"
	Overflowed State = "overflowed" // dropped by the guest's kernel: overflow or I/O error
	Unreadable State = "unreadable" // damaged, or on a disk that was not given
)

// content is what a snapshot keeps.
type content struct {
	chunk      int64         // bytes
	exceptions int           // of a thin one, blocks that are mapped
	preserved  int64         // what they hold; thin ones may share it
	size, used int64         // of the store; of a thin one, its own and preserved
	store      *dmsnap.Store // nil of a thin one
}

// judge opens a snapshot's store, or its thin device, and says what it is worth.
func judge(g *lvm2.Group, s *lvm2.Snapshot) (State, *content, error) {
	open := judgeThick
	if s.Thin {
		open = judgeThin
	}
	kept, err := open(g, s)
	switch {
	case err == nil:
		return Valid, kept, nil
	case errors.Is(err, dmsnap.ErrInvalid):
		return Overflowed, nil, err
	}
	return Unreadable, nil, err
}

func judgeThick(g *lvm2.Group, s *lvm2.Snapshot) (*content, error) {
	store, err := open.Store(g, s)
	if err != nil {
		return nil, err
	}
	if _, err := g.Open(s.Origin); err != nil {
		return nil, err
	}
	return &content{store.Chunk, store.Exceptions(), store.Preserved(), s.COW.Size, store.Used(), store}, nil
}

func judgeThin(g *lvm2.Group, s *lvm2.Snapshot) (*content, error) {
	t, pool, err := g.Thin(s.COW)
	if err != nil {
		return nil, err
	}
	mapped := int64(t.Mapped) * pool.BlockSize
	return &content{pool.BlockSize, int(t.Mapped), mapped, s.COW.Size, mapped, nil}, nil
}

// Expected is what a guest reported of one volume: UUIDs as LVM prints them.
type Expected struct {
	Volume   string `json:"volume"`   // UUID of the logical volume; of a shadow copy, the GUID of its volume
	Snapshot string `json:"snapshot"` // UUID of its snapshot
}

// Verdict is what became of an expected snapshot. OK is the only proof that it
// can be recovered; Reason says why it can't.
type Verdict struct {
	Expected
	OK         bool   `json:"ok"`
	Found      bool   `json:"found"`                // something with the snapshot's UUID is there
	Name       string `json:"name,omitempty"`       // "vg/snap"
	VolumeName string `json:"volumeName,omitempty"` // "vg/lv"
	State      State  `json:"state,omitempty"`
	Exceptions int    `json:"exceptions"`
	Preserved  int64  `json:"preservedBytes"`
	Reason     string `json:"reason,omitempty"`
}

// Verify looks every expected snapshot up by its UUID and reads its header and
// its whole exception table. The verdicts are in the order of want. The error
// is only ctx's.
func Verify(ctx context.Context, c *open.Contents, want []Expected) ([]Verdict, error) {
	out := make([]Verdict, 0, len(want))
	for _, e := range want {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, verify(c, e))
	}
	return out, nil
}

func verify(c *open.Contents, e Expected) Verdict {
	v := Verdict{Expected: e}
	vol, err := c.Volume(e.Snapshot)
	if err != nil {
		v.Reason = fmt.Sprintf("snapshot %s: %v", e.Snapshot, err)
		return v
	}
	v.Found, v.Name = true, vol.Name
	if vol.Keeper != nil {
		return verifyKept(c, vol, v)
	}
	if vol.Snapshot == nil {
		v.Reason = fmt.Sprintf("%s is a %s and no snapshot", vol.Name, vol.Kind)
		return v
	}
	v.VolumeName = vol.Group.Name + "/" + vol.Snapshot.Origin.Name
	if !sameUUID(vol.Snapshot.Origin.UUID, e.Volume) {
		v.Reason = fmt.Sprintf("%s is a snapshot of %s (%s), not of %s", vol.Name, v.VolumeName, vol.Snapshot.Origin.UUID, e.Volume)
		return v
	}
	state, kept, err := judge(vol.Group, vol.Snapshot)
	v.State = state
	if err != nil {
		v.Reason = fmt.Sprintf("%s: %v", vol.Name, err)
		return v
	}
	v.OK, v.Exceptions, v.Preserved = true, kept.exceptions, kept.preserved
	return v
}

func sameUUID(a, b string) bool {
	return strings.ReplaceAll(a, "-", "") == strings.ReplaceAll(b, "-", "")
}
