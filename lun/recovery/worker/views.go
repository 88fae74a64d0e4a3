package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Views are workers by name that outlive whoever started them: what a control
// plane has after a restart. They are kept in a directory, by default private,
// that holds for each a socket and a file with its Handle. Its methods may be
// called at once for different names; two processes must not use one directory.
type Views struct {
	// Dir is made if it is not there. It lives as long as processes do: /run
	// is its place. Its path is short: a socket's has at most 107 bytes.
	Dir string
}

// viewRecord is the file of one view.
type viewRecord struct {
	Name   string `json:"name"`
	Handle Handle `json:"handle"`
	Ready  Ready  `json:"ready"`
}

// paths are a view's socket and file. Names may hold anything.
func (v *Views) paths(name string) (socket, file string) {
	sum := sha256.Sum256([]byte(name))
	base := filepath.Join(v.Dir, hex.EncodeToString(sum[:8]))
	return base + ".nbd", base + ".json"
}

// Start starts a worker under a name and lets go of it. Socket, Detachable and,
// if it is empty, OverlayDir of s are set here. A view of that name that runs
// is ended first: what was written to it is gone. The sources may be closed
// once Start has returned.
//
// If this process ends before Start does, the worker ends, too.
func (v *Views) Start(ctx context.Context, name string, s Spec) (socket string, r Ready, err error) {
	if err := os.MkdirAll(v.Dir, 0o700); err != nil {
		return "", Ready{}, fmt.Errorf("views: %w", err)
	}
	if err := v.Stop(ctx, name); err != nil {
		return "", Ready{}, err
	}
	socket, file := v.paths(name)
	s.Socket, s.Detachable = socket, true
	if s.OverlayDir == "" {
		s.OverlayDir = v.Dir
	}
	w, err := Start(ctx, s)
	if err != nil {
		return "", Ready{}, fmt.Errorf("view %q: %w", name, err)
	}
	b, err := json.Marshal(viewRecord{Name: name, Handle: w.Handle, Ready: w.Ready})
	if err == nil {
		// No sync: a handle means nothing after the power went.
		if err = os.WriteFile(file+".new", b, 0o600); err == nil {
			err = os.Rename(file+".new", file)
		}
	}
	if err == nil {
		err = w.Detach()
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("view %q: %w", name, err), w.Close())
		return "", Ready{}, err
	}
	return socket, w.Ready, nil
}

// Stop ends the view of a name, whatever process started it. That there is none
// is success.
func (v *Views) Stop(ctx context.Context, name string) error {
	socket, file := v.paths(name)
	r, err := readView(file)
	if errors.Is(err, fs.ErrNotExist) {
		// A start that was killed may have left its socket.
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("view %q: %w", name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("view %q: %w", name, err)
	}
	r.Handle.Socket = socket // never a path that a file talks us into
	if err := Kill(ctx, r.Handle); err != nil {
		return fmt.Errorf("view %q: %w", name, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("view %q: %w", name, err)
	}
	return nil
}

// Names lists the views that were started and not stopped, alive or not.
func (v *Views) Names() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(v.Dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("views: %w", err)
	}
	var names []string
	for _, f := range files {
		r, err := readView(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // stopped meanwhile
		}
		if err != nil {
			return names, fmt.Errorf("views: %w", err)
		}
		names = append(names, r.Name)
	}
	return names, nil
}

func readView(file string) (viewRecord, error) {
	var r viewRecord
	b, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}
