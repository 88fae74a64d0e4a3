// Package engine carries out snapshot sets: it performs the actions that
// machine asks for, journals what it is about to hold before it does, and gives
// everything back through one set of undo functions, whether a set is released,
// fails, or was cut off by a crash.
//
// What it promises:
//
//   - The split is asked for only after every guest that snapshots itself has
//     reported every volume.
//   - No LUN is taken from under a block device that this host has made of it:
//     the device goes first, and where it is in use nothing does.
//   - Each thing outside (in-guest snapshots, splits, views, LUNs) is in the
//     journal before it exists. New gives back what an earlier process left.
//   - A VM that is paused is resumed on every path; a guard process that does
//     not depend on this one sees to it if this one dies.
//   - While a VM stands still nothing is written to the journal.
//
// The files follow the story: plan, guest, split, verify, recover, expose,
// turn (revert and break), inplace, diff, undo; identity.go keeps copies from hosts
// that have the originals, and run.go is the loop that joins them.
// disks.go finds the volumes under virtual disks, and hosted.go is about those that
// are files or logical volumes of a host.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// Publisher puts recovered views before initiators: the data plane's target.
type Publisher interface {
	// Publish serves what p.Socket offers as a LUN to p.Initiators, and to
	// nobody else from its first moment. It repeats safely: the same name
	// keeps its LUN number, and Writable may be raised.
	Publish(ctx context.Context, p Publication) (driver.Path, error)
	// Withdraw takes the LUN away. That it is not there is success.
	Withdraw(ctx context.Context, name string) error
}

// Publication is a recovered view to be served.
type Publication struct {
	Name       string       // of the LUN: set/vm/device
	Socket     string       // unix socket that speaks NBD
	Export     string       // NBD export on it
	Identity   lun.Identity // new for this view
	Initiators []string
	Writable   bool
}

// Recoverer runs the workers that look into guests' disks. The engine itself
// never parses a byte of them.
type Recoverer interface {
	// Check looks for in-guest snapshots on the disks of one VM, and returns
	// for each, in order, "" for found and valid, or why not.
	Check(ctx context.Context, disks Disks, want []InGuest) ([]string, error)
	// Containers looks at what holds each of the disks that lie on a host's
	// volumes, from its first table to its last. What is wrong with one is in its
	// Problem.
	Containers(ctx context.Context, disks Disks) ([]orchestrator.Container, error)
	// Start brings up a view of the disks in which the volumes show the
	// snapshots' content; without snapshots, the disks as they are. Nothing is
	// copied and the disks are not written. It outlives this process. Name is the
	// engine's, and Stop's. From identity, if it is not "", the view gets
	// identifiers of its own; the same one gives the same again.
	Start(ctx context.Context, name string, disks Disks, want []InGuest, identity string) (View, error)
	// Rewritten tells where an export of a view differs, or may, from the disk
	// under it, of size bytes: by what was recovered, and by what was written to
	// the view until now. In order and apart.
	Rewritten(ctx context.Context, socket, export string, size int64) ([]lun.Extent, error)
	// Readers is how many of this host are connected to a view's socket, once
	// those that are leaving have left.
	Readers(ctx context.Context, socket string) (int, error)
	// InPlace puts the volumes back to the snapshots on the disks themselves,
	// which are writable and nobody else's. begin is called before the first
	// write; its error ends all, and nothing was written. After an error from
	// then on, and after a crash, InPlace may be called again and goes on.
	InPlace(ctx context.Context, disks Disks, want []InGuest, discardOthers bool, begin func(InPlacePlan) error) error
	// Stop ends the view of that name, whatever process started it, and drops
	// what was written to it. That there is none is success.
	Stop(ctx context.Context, name string) error
}

// Disks are the virtual disks of one VM in their splits.
type Disks struct {
	Devices []lun.Device // the splits
	// Places say for each disk where on the devices it lies; none where the devices
	// are the disks.
	Places []Place
}

// Place is where a virtual disk lies on splits of a host's volumes.
type Place struct {
	Name   string // for messages
	On     []int  // indexes of Disks.Devices
	Volume string // what of these holds it, in the words of lun inspect
	Path   string // of its file, from the root of the volume's file system; "": it is the volume
	Format string // of its container, by lun/vdisk's name
}

// InGuest names one in-guest snapshot, by UUIDs only.
type InGuest struct {
	Volume   string // UUID of the logical volume
	Snapshot string // UUID of its snapshot
}

// InPlacePlan is what a recovery in place is about to do.
type InPlacePlan struct {
	Volumes []InPlaceVolume
	// Rewritten is for each disk where it may change, or has been changed by an
	// earlier attempt that was interrupted.
	Rewritten [][]lun.Extent
	Bytes     int64 // of volumes, that are written
	Done      bool  // an earlier attempt came to its end: nothing will be written
}

// InPlaceVolume is one volume that is put back.
type InPlaceVolume struct {
	Volume    string   // UUID of the logical volume
	Mode      string   // "overwrite" or "delete"; "" where all is done
	Discarded []string // other snapshots of it that go
}

// View is a recovered view that is up.
type View struct {
	Socket  string   // unix socket that speaks NBD
	Exports []string // one for each disk, in their order
}

// Config is what an Engine works with. Attachments, HostVolumes, Hosts, Initiator,
// Tracer, Logger and UndoRetry may be left out.
type Config struct {
	Journal   journal.Journal
	Writers   []writer.Writer
	Arrays    []*arrays.Array
	Publisher Publisher
	Recoverer Recoverer
	// Attachments are this host's; nil where nothing can be attached.
	Attachments Attachments
	// HostVolumes knows what lies under this host's files; nil where disks that are
	// files have no array under them.
	HostVolumes HostVolumes
	// Hosts are initiators by the names of the hosts that have them, and Initiator is
	// as which this host's kernel logs in; "" if it doesn't.
	Hosts     map[string][]string
	Initiator string
	Tracer    trace.Tracer
	Logger    *slog.Logger
	// UndoRetry is the pause after an undo that failed. 0: 5 s.
	UndoRetry time.Duration
}

// Engine implements orchestrator.Service.
type Engine struct {
	cfg Config

	ctx  context.Context // ends with the engine
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	closed bool
	runs   map[orchestrator.SetID]*run // sets that are not final
}

var _ orchestrator.Service = (*Engine)(nil)

// New returns an engine that has taken up where the journal ends: sets that
// were under way are being undone, those being released go on, those that are
// ready stay. It returns before the undoing has ended; Wait follows it.
func New(cfg Config) (*Engine, error) {
	if cfg.Tracer == nil {
		cfg.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.UndoRetry == 0 {
		cfg.UndoRetry = 5 * time.Second
	}
	recs, err := cfg.Journal.All()
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, runs: map[orchestrator.SetID]*run{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, rec := range recs {
		if rec.Set.State.Final() {
			continue
		}
		r := e.newRun(rec)
		e.runs[r.id] = r
		switch rec.Set.State {
		case orchestrator.StateReleasing, orchestrator.StateReady, orchestrator.StateReverting, orchestrator.StateBreaking, orchestrator.StateRecovering:
		default:
			r.fail(fmt.Errorf("%w while the set was %s", errRestarted, rec.Set.State))
		}
		e.start(r, machine.Restarted)
	}
	return e, nil
}

// Close stops the engine. Sets under way stop where they are, with no VM left
// paused, and are undone by the next New; ready sets stay as they are.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	for _, r := range e.runs {
		r.stopLease()
	}
	e.mu.Unlock()
	e.stop()
	e.wg.Wait()
}

// start runs r from ev on, in a goroutine of its own. e.mu must be held or the
// engine not yet shared.
func (e *Engine) start(r *run, ev machine.Event) {
	e.wg.Go(func() { r.loop(ev) })
}

var (
	errStopping  = errors.New("the control plane is stopping")
	errRestarted = errors.New("the control plane stopped")
)

// find returns the set's run, if it is not final.
func (e *Engine) find(id orchestrator.SetID) *run {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[id]
}

// forget drops a run that is final.
func (e *Engine) forget(id orchestrator.SetID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.runs, id)
}
