package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/copyout"
	"github.com/spf13/cobra"
)

func (a *app) lunCpCommand() *cobra.Command {
	var from sourceFlags
	var recursive bool
	c := &cobra.Command{
		Use:   "cp SRC… VOLUME:PATH DEST",
		Short: "Copy files out of a volume, without mounting it",
		Long: `Copy a file, or with -r a directory and all that is below it, out of the file system (ext2, ext3, ext4, xfs, btrfs, ntfs, fat) in a volume: from the volume as it
was when SRC was split off, or from its snapshot.

Modes, times, hard links, extended attributes, access control lists and holes are kept; owners and devices only for root. If DEST is a
directory, the copy is made in it under its own name. Nothing that exists is touched, and no symbolic link is followed on either side.

A file that can't be copied, or not with all it has, is named on stderr; the rest is copied, and the exit status is 3.`,
		Example: `  cleave lun cp disk.img vg/snap:/etc/fstab .
  cleave lun cp -r disk.img vg/snap:/var/lib/postgresql ./restored
  cleave lun cp -r iscsi://192.0.2.20/iqn.2026-01.org.example:disk/1 p2:/home/anna .`,
		Args: filesArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			n := len(args)
			s, err := a.sources(c.Context(), &from, args[:n-2])
			if err != nil {
				return err
			}
			return a.withFiles(c.Context(), s, args[n-2], func(f fs.FS, r fs.Ref, source string) error {
				return a.copyOut(c.Context(), f, r, source, args[n-1], recursive)
			})
		},
	}
	from.add(c.Flags())
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "copy directories with all that is below them")
	return c
}

// copyOut copies what is at source to dest, or into it if that is a directory.
func (a *app) copyOut(ctx context.Context, f fs.FS, r fs.Ref, source, dest string, recursive bool) error {
	name := path.Base("/" + source)
	parent := dest
	if st, err := os.Stat(dest); err != nil || !st.IsDir() {
		parent, name = filepath.Dir(dest), filepath.Base(dest)
	} else if name == "/" {
		return usagef("%s is there already: give a name that is not for a copy of the whole file system", dest)
	}
	st, err := f.Stat(r)
	if err != nil {
		return err
	}
	if st.Type == fs.Directory && !recursive {
		return usagef("/%s is a directory: add -r to copy it", source)
	}
	dir, err := os.Open(parent)
	if err != nil {
		return hint(err, "DEST is a directory, or a name in one that exists")
	}
	defer dir.Close()
	failed := 0
	p := newLunProgress(a.Streams, name, st.Size)
	defer p.end()
	o := copyout.Options{Recursive: recursive, Failed: func(below string, err error) error {
		failed++
		say(a.Err, "cleave", fmt.Sprintf("%s: %v", path.Join("/", source, below), oneLine(err)))
		return nil
	}}
	if st.Type == fs.Regular {
		o.Progress = p.update
	}
	done, err := copyout.Copy(ctx, f, r, dir, name, o)
	switch {
	case err != nil:
		return err
	case failed > 0 && done.Files == 0:
		return hint(errors.New("nothing was copied"), "see the lines above")
	case failed > 0:
		return status(ExitPartial)
	}
	if done.Owners {
		say(a.Err, "warning", "owners are not kept: that takes root")
	}
	return nil
}

// oneLine is an error that may be several, as one line.
func oneLine(err error) string {
	var all interface{ Unwrap() []error }
	if !errors.As(err, &all) {
		return err.Error()
	}
	s := ""
	for i, e := range all.Unwrap() {
		if i > 0 {
			s += "; "
		}
		s += e.Error()
	}
	return s
}
