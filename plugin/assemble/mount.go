package assemble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/lun/mount"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/cli"
)

// mountFiles shows the files of a volume in a directory.
func mountFiles(ctx context.Context, o cli.MountOptions) (warnings []string, err error) {
	o.Sources.Paths = slices.Clone(o.Sources.Paths)
	for i, p := range o.Sources.Paths {
		if !isLUN(p) {
			o.Sources.Paths[i] = absolute(p)
		}
	}
	if o.Sources.Login.Identities, err = identities(ctx, o.Sources); err != nil {
		return nil, err
	}
	what, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	warnings, err = mount.Start(ctx, nil, mount.Request{
		Open: what, Dir: o.Dir, Source: strings.Join(append(o.Sources.Paths, o.Volume), " "), Others: o.Others,
	})
	return warnings, mountError(err)
}

func unmountFiles(dir string) error { return mountError(mount.Stop(dir)) }

func mountError(err error) error {
	switch {
	case errors.Is(err, mount.ErrBusy):
		return fmt.Errorf("%w: %w", err, &hinted{orchestrator.ErrBusy, "`fuser -vm DIR` says who uses it"})
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, &hinted{orchestrator.ErrNotFound, "DIR is a directory that exists"})
	}
	return attachError(err)
}

// openMounted opens what a mount shows: in the process behind it.
func openMounted(ctx context.Context, what json.RawMessage) (mount.Opened, error) {
	var o cli.MountOptions
	if err := json.Unmarshal(what, &o); err != nil {
		return mount.Opened{}, err
	}
	f, err := openFiles(ctx, o.Sources, o.Volume)
	if err != nil {
		return mount.Opened{}, told{err}
	}
	return mount.Opened{FS: f.FS, Closer: f.Closer, Warnings: append(f.Warnings, f.FS.Info().Warnings...)}, nil
}
