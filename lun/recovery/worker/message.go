package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// Bounds on what the two sides say to each other, in bytes.
const (
	maxSources = 64
	maxConfig  = 1 << 20
	maxReply   = 64 << 20
	maxText    = 4096
	// maxSocketPath is what fits into sockaddr_un with its final zero, unix(7).
	maxSocketPath = 107
)

// mode is what a worker is for: its first argument.
type mode string

const (
	modeView    mode = "view"
	modeInspect mode = "inspect"
	modeCheck   mode = "check"
	modeVolumes mode = "volumes"
	modeFiles   mode = "files"
	// modeContainers looks at the containers of places.
	modeContainers mode = "containers"
	// modeConfined looks at nothing: it tries what no worker may do.
	modeConfined mode = "confined"
	modeInPlace  mode = "in-place"
)

// config is the line that the launcher writes to the worker's standard input.
// Numbers named FD are descriptors that the worker inherited.
type config struct {
	Sources    []configSource      `json:"sources"`
	Expected   []recovery.Expected `json:"expected,omitempty"`
	Snapshots  []string            `json:"snapshots,omitempty"`
	Volumes    []string            `json:"volumes,omitempty"`
	ListenFD   int                 `json:"listenFd,omitempty"`
	OverlayFDs []int               `json:"overlayFds,omitempty"` // an empty file for each source
	FilesFD    int                 `json:"filesFd,omitempty"`    // see question
	Limit      int64               `json:"limit,omitempty"`
	ReadOnly   bool                `json:"readOnly,omitempty"`
	Identity   string              `json:"newIdentity,omitempty"` // a seed
	Detachable bool                `json:"detachable,omitempty"`
	Memory     int64               `json:"memory"`
	Containers bool                `json:"containers,omitempty"`
	Snapshot   string              `json:"containerSnapshot,omitempty"`
	Discard    bool                `json:"discardOthers,omitempty"`
	JournalFD  int                 `json:"journalFd,omitempty"`
	Places     []open.Place        `json:"places,omitempty"`
	NoRecovery bool                `json:"noRecovery,omitempty"`
}

type configSource struct {
	Name     string `json:"name"`
	FD       int    `json:"fd"`
	NBD      bool   `json:"nbd,omitempty"` // a connected socket, not a file
	Writable bool   `json:"writable,omitempty"`
	Logical  int    `json:"logical,omitempty"`
	Physical int    `json:"physical,omitempty"`
}

// reply is a line that a worker writes to its standard output: one, but for
// modeInPlace, which says its plan, then how far it is, and in the end Done, and
// before all that Reading, now and then, while it reads a journal.
type reply struct {
	Error    *Error             `json:"error,omitempty"`
	View     *Ready             `json:"view,omitempty"`
	Report   json.RawMessage    `json:"report,omitempty"`
	Verdicts []recovery.Verdict `json:"verdicts,omitempty"`
	Contents *found             `json:"contents,omitempty"`

	Containers []Container `json:"containers,omitempty"`

	Confinement *Confinement `json:"confinement,omitempty"`
	Plan        *Plan        `json:"plan,omitempty"`
	Written     int64        `json:"written,omitempty"` // bytes, of Plan's
	Reading     bool         `json:"reading,omitempty"`
	Done        bool         `json:"done,omitempty"`
}

// found is what modeVolumes answers: all that is there, and the volumes that it
// serves, whose exports are numbered in their order.
type found struct {
	Names    []string      `json:"names"`
	Damage   []*Error      `json:"damage,omitempty"`
	Warnings []*Error      `json:"warnings,omitempty"`
	Volumes  []foundVolume `json:"volumes,omitempty"`
}

type foundVolume struct {
	Name  string `json:"name"`
	Error *Error `json:"error,omitempty"` // why it is not served
}

// Error is what went wrong in a worker that could still say so. errors.Is
// knows recovery.ErrNoSnapshot, recovery.ErrChoice, recovery.ErrDiscards,
// recovery.ErrJournal, open.ErrNotFound, lun.ErrReadOnly,
// vdisk.ErrOtherFile, open.ErrNoFileSystem, fs.ErrDirty and lun.ErrNotFormat in it; a *lun.FormatError is in Format.
type Error struct {
	Text   string           `json:"text"`
	Cause  string           `json:"cause,omitempty"`
	Format *lun.FormatError `json:"format,omitempty"`
}

var causes = map[string]error{
	"no-snapshot": recovery.ErrNoSnapshot, "choice": recovery.ErrChoice, "discards": recovery.ErrDiscards, "journal": recovery.ErrJournal, "read-only": lun.ErrReadOnly,
	"not-found": open.ErrNotFound, "other-file": vdisk.ErrOtherFile, "not-format": lun.ErrNotFormat, "no-space": lun.ErrNoSpace,
	"no-file-system": open.ErrNoFileSystem, "dirty": fs.ErrDirty,
}

func newError(err error) *Error {
	e := &Error{Text: clean(err.Error())}
	for name, cause := range causes {
		if errors.Is(err, cause) {
			e.Cause = name
		}
	}
	var fe *lun.FormatError
	if errors.As(err, &fe) {
		f := *fe
		if f.Value != nil {
			f.Value = clean(fmt.Sprint(f.Value))
		}
		e.Format = &f
	}
	return e
}

func (e *Error) Error() string { return clean(e.Text) }

func (e *Error) Is(target error) bool {
	cause, ok := causes[e.Cause]
	return ok && cause == target
}

func (e *Error) As(target any) bool {
	fe, ok := target.(**lun.FormatError)
	if ok && e.Format != nil {
		*fe = e.Format
		return true
	}
	return false
}

// clean makes a stranger's text one printable line of bounded length.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar && !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
