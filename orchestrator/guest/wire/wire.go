// Package wire is what a guest requester tells its host: the messages of the
// guest step, whoever carries them (the QEMU guest agent, VMware Tools, our own
// cleave-guest).
//
// It imports nothing of ours, so that what runs inside a guest stays small. A
// message is one JSON object on one line. Readers ignore fields they do not
// know and refuse a Version they do not know.
//
// Everything here comes from inside a guest and is hostile input: Parse bounds
// and checks it, and nothing in it is ever used as a path or a command.
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Version of the messages. It changes when an old reader would misunderstand.
const Version = 1

// MaxReport bounds a whole report, in bytes.
const MaxReport = 1 << 20

// Report is all that a guest said about one guest step. A volume without a
// completion did not complete: silence is not consent.
type Report struct {
	Started     time.Time    `json:"started"`            // guest clock
	Finished    time.Time    `json:"finished,omitzero"`  // zero: the step has not ended
	Writers     []Writer     `json:"writers,omitempty"`  // application writers that answered
	Completions []Completion `json:"completions"`        // one per volume
	Requester   string       `json:"requester"`          // who did it: "qemu-ga 7.2.0", …
	Failed      string       `json:"failed,omitempty"`   // why the step as a whole failed; everything is undone then
	Warnings    []string     `json:"warnings,omitempty"` // for people
	Phases      []Phase      `json:"phases,omitempty"`   // what the guest did when, by its own clock
}

// Phase is the beginning of a part of the step; it lasts until the next one's.
type Phase struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// Completion says that one volume's snapshot is complete inside the guest.
type Completion struct {
	Volume   string    `json:"volume"`   // as the guest names it: "vg/lv"
	VolumeID string    `json:"volumeId"` // UUID of the logical volume
	Group    string    `json:"group"`    // UUID of its volume group
	Snapshot string    `json:"snapshot"` // UUID of the in-guest snapshot
	Name     string    `json:"name"`     // the snapshot's name: "vg/cleave-…"
	Kind     string    `json:"kind"`     // "lvm-thick", "lvm-thin", "btrfs", "vss"
	Mount    string    `json:"mount,omitempty"`
	FS       string    `json:"fs,omitempty"`
	Began    time.Time `json:"began"`             // guest clock, before the snapshot was asked for
	Ended    time.Time `json:"ended"`             // guest clock, after it was complete and flushed
	Session  string    `json:"session,omitempty"` // the writer session that covered it
	Error    string    `json:"error,omitempty"`   // why this volume has no snapshot
}

// OK reports whether the completion claims success with all that a claim needs.
func (c Completion) OK() bool {
	return c.Error == "" && c.VolumeID != "" && c.Snapshot != "" && !c.Began.IsZero() && !c.Ended.Before(c.Began)
}

// Writer is an application writer's answer.
type Writer struct {
	App        string      `json:"app"` // "postgresql"
	Version    string      `json:"version,omitempty"`
	State      WriterState `json:"state"`
	Components []Component `json:"components,omitempty"`
	// Session ties volumes together that were snapshot while the writer held
	// one session open ("" where none was needed).
	Session string `json:"session,omitempty"`
	// Label is what the writer wants kept with the backup (PostgreSQL: the
	// backup label), needed to restore from several volumes.
	Label string `json:"label,omitempty"`
	// Files are what belongs beside the writer's data when it is restored from
	// several volumes, besides the label (PostgreSQL: tablespace_map).
	Files  []File    `json:"files,omitempty"`
	Method string    `json:"method,omitempty"` // "checkpoint", "pg_backup_start", …
	Began  time.Time `json:"began,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	Error  string    `json:"error,omitempty"`
}

// File is a small file that a writer wants kept with the backup.
type File struct {
	Name    string `json:"name"`
	Content string `json:"content"`
}

// WriterState says what became of a writer in this step.
type WriterState string

const (
	WriterStable     WriterState = "stable"      // took part and was released
	WriterFailed     WriterState = "failed"      // could not take part: its data is not application-consistent
	WriterNotRunning WriterState = "not-running" // proved not running: its files are closed
	WriterUnknown    WriterState = "unknown"     // did not answer
)

// Component is a group of files that is backed up and restored as a whole.
type Component struct {
	Name    string   `json:"name"`
	Volumes []string `json:"volumes"` // the "vg/lv" that hold it
	Include []string `json:"include"` // paths in the guest
	Exclude []string `json:"exclude,omitempty"`
	Restore string   `json:"restore,omitempty"` // VSS's restore methods, e.g. "STOP_RESTORE_START"
}

// message is one line: exactly one of its parts is set.
type message struct {
	Version    int         `json:"v"`
	Start      *startLine  `json:"start,omitempty"`
	Writer     *Writer     `json:"writer,omitempty"`
	Completion *Completion `json:"completion,omitempty"`
	Warning    string      `json:"warning,omitempty"`
	Phase      *Phase      `json:"phase,omitempty"`
	End        *endLine    `json:"end,omitempty"`

	// Parts of a probe.
	Probe  *probeLine `json:"probe,omitempty"`
	Volume *Volume    `json:"volume,omitempty"`
	App    *App       `json:"app,omitempty"`
}

// parse reads one line into m, with the checks that all lines share.
func (m *message) parse(line []byte) error {
	if err := json.Unmarshal(line, m); err != nil {
		return fmt.Errorf("%.80q: %w", line, err)
	}
	if m.Version != Version {
		return fmt.Errorf("version %d is not known (want %d)", m.Version, Version)
	}
	return nil
}

type startLine struct {
	Requester string    `json:"requester"`
	At        time.Time `json:"at"`
}

type endLine struct {
	At     time.Time `json:"at"`
	Failed string    `json:"failed,omitempty"`
}

// Parse reads the lines of a report. A last line without its newline is taken
// as not yet written. A report without an end line has a zero Finished.
func Parse(b []byte) (Report, error) {
	var r Report
	if len(b) > MaxReport {
		return r, fmt.Errorf("guest report: %d bytes, more than %d", len(b), MaxReport)
	}
	for n, line := range wholeLines(b) {
		if err := r.add(line); err != nil {
			return r, fmt.Errorf("guest report, line %d: %w", n+1, err)
		}
	}
	return r, nil
}

// wholeLines yields the lines that end with a newline and are not blank, with
// their numbers from 0.
func wholeLines(b []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		i := bytes.LastIndexByte(b, '\n')
		if i < 0 {
			return
		}
		for n, line := range bytes.Split(b[:i], []byte("\n")) {
			if len(bytes.TrimSpace(line)) > 0 && !yield(n, line) {
				return
			}
		}
	}
}

func (r *Report) add(line []byte) error {
	var m message
	if err := m.parse(line); err != nil {
		return err
	}
	if !r.Finished.IsZero() {
		return fmt.Errorf("%.80q comes after the end", line)
	}
	switch {
	case m.Start != nil:
		r.Started, r.Requester = m.Start.At, clean(m.Start.Requester)
	case m.Writer != nil:
		m.Writer.App, m.Writer.Error = clean(m.Writer.App), clean(m.Writer.Error)
		r.Writers = append(r.Writers, *m.Writer)
	case m.Completion != nil:
		m.Completion.Error = clean(m.Completion.Error)
		r.Completions = append(r.Completions, *m.Completion)
	case m.Warning != "":
		r.Warnings = append(r.Warnings, clean(m.Warning))
	case m.Phase != nil:
		r.Phases = append(r.Phases, Phase{clean(m.Phase.Name), m.Phase.At})
	case m.End != nil:
		r.Finished, r.Failed = m.End.At, clean(m.End.Failed)
	default:
		return fmt.Errorf("%.80q says nothing", line)
	}
	return nil
}

// clean makes a guest's words fit for one line of a terminal.
func clean(s string) string {
	if len(s) > 500 {
		s = s[:500]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
