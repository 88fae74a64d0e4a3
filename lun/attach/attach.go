package attach

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Method is a way to make a block device.
type Method string

const (
	// Auto is ISCSI for a LUN where this host can, else NBD where the kernel
	// can, else FUSE.
	Auto  Method = "auto"
	ISCSI Method = "iscsi"
	NBD   Method = "nbd"
	FUSE  Method = "fuse"
)

// Errors, compared with errors.Is and wrapped with what was attempted.
var (
	// ErrBusy says that a device is in use, or being attached or detached.
	ErrBusy = errors.New("in use")
	// ErrNotAttached says that there is no such attachment.
	ErrNotAttached = errors.New("not attached")
	// ErrUnsupported says that this host can't attach by that method.
	ErrUnsupported = errors.New("not possible on this host")
	// ErrIdentity says that the kernel found another LUN than the one meant.
	ErrIdentity = errors.New("another LUN stands in its place")
)

// Options of a Host. Zero values mean the defaults given.
type Options struct {
	// State holds the records of attachments; it survives a reboot. Default
	// /var/lib/cleave/attach.
	State string
	// Run holds what lasts as long as the attachments themselves. Rules know
	// the default by name: /run/cleave/attach.
	Run string
	// Helper is the command that runs Main. Default: this program, with
	// Command as its only argument.
	Helper []string
	// StartTimeout bounds the wait for a helper to open its device. Default
	// 3 min.
	StartTimeout time.Duration
	// Log gets what went wrong without being the caller's error. Default: none.
	Log *slog.Logger
}

// Host is this host, as far as attaching goes. Its methods may be called at once
// from several goroutines and processes.
type Host struct{ o Options }

// New makes the directories.
func New(o Options) (*Host, error) {
	if o.State == "" {
		o.State = "/var/lib/cleave/attach"
	}
	if o.Run == "" {
		o.Run = "/run/cleave/attach"
	}
	if o.Helper == nil {
		o.Helper = []string{"/proc/self/exe", Command}
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = 3 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{o.State, o.Run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("directory of attachments: %w", err)
		}
	}
	return &Host{o}, nil
}

// Request says what to attach.
type Request struct {
	// Source is what people call it; Detach takes it as well.
	Source string
	// Open is what the helper's Opener is given. It may hold secrets: it goes
	// through a pipe.
	Open json.RawMessage
	// LUN is the source as the host's own initiator would reach it; nil if it
	// is no LUN, or if more than its bytes is wanted.
	LUN *LUN
	// LUNs are who the LUNs of a target are that the device is made of, in
	// whatever words: whoever gives LUNs out finds by them what stands on his.
	LUNs []string
	// Writable lets the host write. The Opener is told.
	Writable bool
	// Method "" is Auto.
	Method Method
}

// State is how an attachment is doing.
type State string

const (
	Attaching  State = "attaching"  // or being detached, by a process that lives
	Attached   State = "attached"   //
	Incomplete State = "incomplete" // begun by a process that died; Detach clears it away
	Dead       State = "dead"       // its helper died: the device gives I/O errors
	Gone       State = "gone"       // from before a reboot; Detach clears it away
)

// Attachment is a source that is, or was being, attached.
type Attachment struct {
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Device   string    `json:"device,omitempty"` // /dev/…; "" until it is there
	Method   Method    `json:"method"`
	Writable bool      `json:"writable"`
	Size     int64     `json:"size,omitempty"` // bytes
	Since    time.Time `json:"since"`
	State    State     `json:"state"`
	Identity string    `json:"identity,omitempty"` // of the LUN, where it was checked
	Paths    []string  `json:"paths,omitempty"`    // devices below a multipath map
	LUNs     []string  `json:"luns,omitempty"`     // what it is made of, as the Request said
	Warning  string    `json:"warning,omitempty"`  // what this host lacks
}

// Attach makes the device. On error nothing is left.
func (h *Host) Attach(ctx context.Context, r Request) (Attachment, error) {
	if os.Geteuid() != 0 {
		return Attachment{}, fmt.Errorf("attaching %s as a user other than root: %w", r.Source, unix.EPERM)
	}
	m, err := h.choose(&r)
	if err != nil {
		return Attachment{}, fmt.Errorf("attaching %s: %w", r.Source, err)
	}
	rec, err := h.newRecord(r)
	if err != nil {
		return Attachment{}, fmt.Errorf("attaching %s: %w", r.Source, err)
	}
	defer rec.unlock()
	if err = m.attach(ctx, rec, r); err == nil {
		rec.Complete = true
		err = rec.save()
	}
	if err == nil {
		err = m.keep(rec)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		err = errors.Join(fmt.Errorf("attaching %s by %s: %w", r.Source, r.Method, err), h.undo(clean, rec))
		return Attachment{}, err
	}
	a := rec.Attachment
	a.State = Attached
	return a, nil
}

// cleanTimeout bounds the undoing of an attempt.
const cleanTimeout = time.Minute

// method is one way. What it leaves behind at each step is found again by the
// record's ID, or is in the record before the step.
type method interface {
	// attach makes the device and fills in the record.
	attach(ctx context.Context, rec *record, r Request) error
	// keep is called once the record says that all is done.
	keep(rec *record) error
	// device finds the block device, "" if there is none.
	device(rec *record) (string, error)
	// undo takes away all that attach made, device and below; none of it need
	// be there. Nobody uses the device, and it is flushed, when it is called
	// on one that is complete.
	undo(ctx context.Context, rec *record) error
	// alive says whether I/O to the device gets anywhere.
	alive(rec *record) bool
}

func (h *Host) method(m Method) (method, error) {
	switch m {
	case FUSE:
		return &fuseLoop{h: h}, nil
	case NBD:
		return &kernelNBD{h: h}, nil
	case ISCSI:
		return &openISCSI{h: h}, nil
	case Auto:
	}
	return nil, fmt.Errorf("method %.20q: %w", m, ErrUnsupported)
}

// Supports says why this host can't attach by a method, nil if it can.
func Supports(m Method) error {
	switch m {
	case ISCSI:
		return iscsiSupport()
	case NBD:
		return nbdSupport()
	case FUSE, Auto:
	}
	return nil
}

// choose settles r.Method.
func (h *Host) choose(r *Request) (method, error) {
	switch r.Method {
	case "", Auto:
		switch {
		case r.LUN != nil && Supports(ISCSI) == nil:
			r.Method = ISCSI
		case Supports(NBD) == nil:
			r.Method = NBD
		default:
			r.Method = FUSE
		}
	case ISCSI:
		if r.LUN == nil {
			return nil, fmt.Errorf("the host's iSCSI initiator is for LUNs of a target: %w", ErrUnsupported)
		}
	case NBD, FUSE:
	}
	if err := Supports(r.Method); err != nil {
		return nil, err
	}
	return h.method(r.Method)
}

func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return hex.EncodeToString(b[:])
}

// runPath is a path of an attachment below Run.
func (h *Host) runPath(id, ext string) string { return filepath.Join(h.o.Run, id+ext) }
