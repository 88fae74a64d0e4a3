package cli

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

// Parts are what the commands drive. A part that is nil takes the commands that
// need it away.
type Parts struct {
	// Release is what `cleave version` says.
	Release string
	// Service connects to the control plane at a socket.
	Service func(socket string) Control
	// Storage connects to the data plane at a socket.
	Storage func(socket string) Storage
	// RunArray runs the data plane, and RunServe the control plane, until ctx
	// ends. They return when all has been closed.
	RunArray func(ctx context.Context, o ArrayOptions, log *slog.Logger) error
	RunServe func(ctx context.Context, o ServeOptions, log *slog.Logger) error
	// ControlSocket and ArraySocket are where the planes listen if nobody says
	// otherwise.
	ControlSocket, ArraySocket string
	// Extra commands, made elsewhere.
	Extra []func(Streams) *cobra.Command
}

// Control is a control plane at the other end of a socket.
type Control interface {
	orchestrator.Service
	io.Closer
	// Version asks which release it is.
	Version(ctx context.Context) (string, error)
}

// ArrayOptions is what `cleave array` was told. Empty fields leave the
// configuration's word.
type ArrayOptions struct {
	Config  string // path; "" if there is none
	Socket  string
	State   string
	Pools   map[string]string // directory by name
	Portals []string
	IQN     string
}

// ServeOptions is what `cleave serve` was told.
type ServeOptions struct {
	Config    string
	Socket    string
	WithArray bool
}

// Storage administers the volumes of the embedded array, and who sees them.
// Volumes go by name. Errors carry a driver.Kind.
type Storage interface {
	io.Closer
	Volumes(ctx context.Context) ([]Volume, error)
	CreateVolume(ctx context.Context, name string, size int64, pools []string) (Volume, error)
	ResizeVolume(ctx context.Context, name string, size int64) (Volume, error)
	DeleteVolume(ctx context.Context, name string) error
	ExposeVolume(ctx context.Context, name string, initiators []string, readOnly bool) (Volume, error)
	UnexposeVolume(ctx context.Context, name string) error

	AddMirror(ctx context.Context, volume, pool string) (Volume, error)
	RemoveMirror(ctx context.Context, volume, mirror string) (Volume, error)
	Resync(ctx context.Context, snapshot string) error

	Initiators(ctx context.Context) ([]Initiator, error)
	// AddInitiator lets an initiator log in. Secrets are in files, named by
	// absolute paths, that the data plane reads at each start; an initiator
	// without a user has no CHAP.
	AddInitiator(ctx context.Context, i Initiator, secretFile, mutualFile string) error
	RemoveInitiator(ctx context.Context, iqn string) error

	Pools(ctx context.Context) ([]Pool, error)
}

// Volume is a volume as an operator sees it. Sizes are bytes.
type Volume struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Size      int64     `json:"size"`
	NAA       string    `json:"naa,omitempty"`
	State     string    `json:"state"`
	Wanted    int       `json:"wanted"` // mirrors it should have, those split off included
	Mirrors   []Mirror  `json:"mirrors"`
	Snapshots []string  `json:"snapshots,omitempty"`
	UsedBy    []string  `json:"usedBy,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	LUN       *Exposed  `json:"lun,omitempty"`
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
}

// Exposed is how initiators reach a volume.
type Exposed struct {
	IQN        string   `json:"iqn"`
	LUN        uint64   `json:"lun"`
	Portals    []string `json:"portals"`
	Initiators []string `json:"initiators"`
	ReadOnly   bool     `json:"readOnly,omitempty"`
}

// Initiator may log in to the target.
type Initiator struct {
	IQN      string   `json:"iqn"`
	User     string   `json:"user,omitempty"`   // CHAP
	Mutual   string   `json:"mutual,omitempty"` // CHAP user by which the target proves itself
	Sessions int      `json:"sessions"`
	LUNs     []string `json:"luns,omitempty"`
}

// Pool is a directory that holds mirrors.
type Pool struct {
	Name   string `json:"name"`
	Dir    string `json:"dir"`
	Size   int64  `json:"size"`
	Free   int64  `json:"free"`
	Reason string `json:"reason,omitempty"` // why it can't be used
}
