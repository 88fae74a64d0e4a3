package assemble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/plugin/cli"
)

// sources opens files, devices and LUNs for a worker to look into. What comes from
// a target is parsed here; the worker gets its blocks.
func sources(ctx context.Context, from cli.LUNSources) (s worker.Spec, closeAll func() error, err error) {
	return openSources(ctx, from, false)
}

// openSources is sources for what may be written as well: that is claimed.
func openSources(ctx context.Context, from cli.LUNSources, writable bool) (s worker.Spec, closeAll func() error, err error) {
	closeAll = func() error {
		var errs []error
		for _, src := range s.Sources {
			errs = append(errs, vdisk.Close(src.Device))
		}
		return errors.Join(errs...)
	}
	s.Containers, s.ContainerSnapshot = !from.Raw, from.Snapshot
	for _, path := range from.Paths {
		if isLUN(path) {
			d, err := openLUN(ctx, path, from.Login, writable)
			if err != nil {
				return s, nil, errors.Join(err, closeAll())
			}
			s.Sources = append(s.Sources, worker.Source{Name: path, Device: d})
			continue
		}
		f, err := openFile(path, writable)
		if err != nil {
			return s, nil, errors.Join(err, closeAll())
		}
		src := worker.Source{Name: path, Device: f}
		if st, err := f.File().Stat(); err == nil && st.Mode().IsRegular() {
			src.Files = beside(path, from.Also)
		}
		s.Sources = append(s.Sources, src)
	}
	return s, closeAll, nil
}

// beside resolves the files that the disk at path names: those in its folder and
// nowhere else, and for writing only those that are also named here.
func beside(path string, also []string) vdisk.Resolver {
	dir := filepath.Dir(path)
	folder := vdisk.Folder(dir)
	return vdisk.ResolverFunc(func(name string, readOnly bool) (lun.Device, error) {
		file := filepath.Join(dir, name)
		if !readOnly && !slices.ContainsFunc(also, func(given string) bool { return absolute(given) == absolute(file) }) {
			return nil, fmt.Errorf("it is written only if --also %s says so: %w", file, lun.ErrReadOnly)
		}
		return folder.Resolve(name, readOnly)
	})
}

// absolute is path itself if the working directory is not known.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return filepath.Clean(path)
}

// file is a file or a block device of this host.
type file interface {
	lun.Device
	lun.Filer
}

func openFile(path string, writable bool) (file, error) {
	if writable {
		return claimDisk(path, true)
	}
	return open.File(path)
}

func inspectDisks(ctx context.Context, from cli.LUNSources) (*recovery.Report, cli.Disks, error) {
	spec, closeFiles, err := sources(ctx, from)
	if err != nil {
		return nil, cli.Disks{}, err
	}
	r, seen, err := worker.Inspect(ctx, spec)
	if err = errors.Join(err, closeFiles()); err != nil {
		return nil, cli.Disks{}, err
	}
	return r, cli.Disks{Names: seen.Names, Damage: seen.Damage, Warnings: seen.Warnings}, nil
}

func openDisks(ctx context.Context, from cli.LUNSources, volumes ...string) (cli.Disks, error) {
	if len(volumes) == 0 {
		volumes = []string{worker.AllVolumes}
	}
	spec, closeFiles, err := sources(ctx, from)
	if err != nil {
		return cli.Disks{}, err
	}
	c, err := worker.Open(ctx, spec, volumes...)
	if err != nil {
		return cli.Disks{}, errors.Join(err, closeFiles())
	}
	d := cli.Disks{Closer: after{c, closeFiles}, Names: c.Names, Damage: c.Damage, Warnings: c.Warnings}
	for _, v := range c.Volumes {
		d.Volumes = append(d.Volumes, cli.Disk{Name: v.Name, Open: func(ctx context.Context) (cli.Content, error) {
			dev, err := v.Open(ctx)
			if err != nil {
				return nil, err // not a typed nil
			}
			return dev, nil
		}})
	}
	return d, nil
}

func openFiles(ctx context.Context, from cli.LUNSources, volume string) (cli.Files, error) {
	spec, closeFiles, err := sources(ctx, from)
	if err != nil {
		return cli.Files{}, err
	}
	f, err := worker.OpenFiles(ctx, spec, volume)
	if err != nil {
		return cli.Files{}, errors.Join(err, closeFiles())
	}
	return cli.Files{Closer: after{f, closeFiles}, FS: f, Warnings: append(f.Damage, f.Warnings...)}, nil
}

func confinement(ctx context.Context) (cli.Confinement, error) {
	c, err := worker.Confined(ctx)
	return cli.Confinement{Means: c.String(), Missing: c.Missing, Allowed: c.Allowed}, err
}

// after closes what a worker reads once it has ended.
type after struct {
	io.Closer
	then func() error
}

func (a after) Close() error { return errors.Join(a.Closer.Close(), a.then()) }
