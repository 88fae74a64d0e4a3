package cli

import (
	"context"
	"time"
)

// Mirrors administers the mirrors of volumes and what is split off them. Volumes
// go by name, mirrors and splits by ID. A split that is not there is kind
// NotFound.
type Mirrors interface {
	AddMirror(ctx context.Context, volume, pool string) (Volume, error)
	RemoveMirror(ctx context.Context, volume, mirror string) (Volume, error)
	// RepairVolume returns when the copying has begun.
	RepairVolume(ctx context.Context, volume string) (Volume, error)

	// Splits are all that there are, in no order.
	Splits(ctx context.Context) ([]Split, error)
	// SplitVolumes waits until the mirrors are in sync, and splits all volumes
	// at one instant. With a tag that was used for them it returns what there is.
	SplitVolumes(ctx context.Context, tag string, volumes []string, allowUnmirrored bool) ([]Split, error)
	Resync(ctx context.Context, split string) error
	// Revert and Reverse return the split that holds what the volume held.
	Revert(ctx context.Context, split string) (Split, error)
	Reverse(ctx context.Context, split string) (Split, error)
	// Break makes a split a volume of that name.
	Break(ctx context.Context, split, name string) (Volume, error)
	DeleteSplit(ctx context.Context, split string) error
	// Changes are the regions that may differ between two splits of a volume; ""
	// is the volume as it is now.
	Changes(ctx context.Context, volume, from, to string) (Changes, error)
}

// Mirror is one synchronised, or synchronising, copy of a volume.
type Mirror struct {
	ID     string `json:"id"`
	Pool   string `json:"pool"`
	File   string `json:"file"`
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
	Copied int64  `json:"copied,omitempty"`
	ToCopy int64  `json:"toCopy,omitempty"`
	// Rate is bytes a second, and Remaining how long the rest takes at that, in
	// nanoseconds; 0 if nothing moves.
	Rate      int64         `json:"rate,omitempty"`
	Remaining time.Duration `json:"remaining,omitempty"`
}

// Split is a snapshot: a mirror that was split off its volume, or a reflink of
// one. Sizes are bytes, durations nanoseconds.
type Split struct {
	ID       string    `json:"id"`
	Tag      string    `json:"tag"`
	Volume   string    `json:"volume"` // its name, which may be gone
	VolumeID string    `json:"volumeID"`
	Size     int64     `json:"size"`
	NAA      string    `json:"naa,omitempty"`
	Method   string    `json:"method"`
	State    string    `json:"state"`
	Group    string    `json:"group,omitempty"` // the same for those of one instant
	At       time.Time `json:"at"`
	Pool     string    `json:"pool"`
	File     string    `json:"file"`
	Reason   string    `json:"reason,omitempty"`
	UsedBy   []string  `json:"usedBy,omitempty"`
	LUN      *Exposed  `json:"lun,omitempty"`
	// ResyncBytes is what a resync would copy now, at the most, and ResyncTime
	// how long that takes at the last pace; 0 if none is known.
	ResyncBytes int64         `json:"resyncBytes"`
	ResyncTime  time.Duration `json:"resyncTime,omitempty"`
}

// Changes are regions that may differ, in order and apart from each other.
type Changes struct {
	Granularity int64    `json:"granularity"` // bytes: a region covers what changed, rounded to it
	Total       int64    `json:"total"`       // bytes in all regions
	Regions     []Region `json:"regions"`
}

// Region is a run of bytes of a volume.
type Region struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}
