package mount

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fuse"
)

// Opener opens what a Request's Open describes, in the process behind the mount.
// ctx ends when whoever asked gives up; what is opened lives on.
type Opener func(ctx context.Context, what json.RawMessage) (Opened, error)

// Opened is a file system, and how it ends.
type Opened struct {
	fs.FS
	io.Closer
	Warnings []error
}

// reply is what the helper says once, as a line of JSON.
type reply struct {
	Warnings []string `json:"warnings,omitempty"`
	Error    *told    `json:"error,omitempty"`
}

// told is an error that crosses from the helper.
type told struct {
	Text string `json:"text"`
	Name string `json:"kind,omitempty"`
	Next string `json:"hint,omitempty"`
}

func (t *told) Error() string { return t.Text }

// Kind is the word that the Opener's error gave by a method of that name.
func (t *told) Kind() string { return t.Name }

// Hint is what to try next.
func (t *told) Hint() string { return t.Next }

func tell(err error) *told {
	t := &told{Text: err.Error()}
	if k := (interface{ Kind() string })(nil); errors.As(err, &k) {
		t.Name = k.Kind()
	}
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) {
		t.Next = h.Hint()
	}
	return t
}

// keepWord is what Start says when it has heard that all is well. A helper whose
// input ends without it undoes what it did.
const keepWord = "keep"

// Main is the life of the process behind a mount. It returns the exit status.
func Main(in io.Reader, out, errs io.Writer, open Opener) int {
	if err := help(in, out, slog.New(slog.NewTextHandler(errs, nil)), open); err != nil {
		return 1
	}
	return 0
}

func help(in io.Reader, out io.Writer, log *slog.Logger, open Opener) error {
	lines := bufio.NewReader(in)
	var r Request
	if line, err := lines.ReadBytes('\n'); err != nil {
		return fmt.Errorf("reading what to mount: %w", err)
	} else if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("reading what to mount: %w", err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		if word, _ := lines.ReadString('\n'); word != keepWord+"\n" {
			cancel()
		}
	}()
	answer := func(a reply) error { return json.NewEncoder(out).Encode(a) }
	f, err := open(ctx, r.Open)
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	defer f.Close()
	m, err := fuse.NewTree(r.Dir, fuse.TreeOptions{Source: r.Source, Others: r.Others})
	if err != nil {
		return errors.Join(answer(reply{Error: tell(err)}), err)
	}
	over := make(chan error, 1)
	go func() { over <- m.ServeTree(f.FS, fuse.Options{Log: log}) }()
	m.ReadAhead()
	var a reply
	for _, w := range f.Warnings {
		a.Warnings = append(a.Warnings, w.Error())
	}
	if err := answer(a); err != nil {
		return errors.Join(err, m.Close())
	}
	select {
	case err = <-over:
	case <-ctx.Done():
		// The connection ends with the unmount, and all who still look with it.
		err = m.Close()
	}
	return err
}
