package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/lun/open"
)

// MountOptions is what `cleave lun mount` was told.
type MountOptions struct {
	Sources LUNSources
	Volume  string // name or UUID
	Dir     string
	Others  bool // may look as well
}

func (a *app) lunMountCommand() *cobra.Command {
	var from sourceFlags
	var o MountOptions
	c := &cobra.Command{
		Use:   "mount SRC… VOLUME DIR",
		Short: "Show the files of a volume in a directory, read-only",
		Long: `Show the file system (ext2, ext3, ext4, xfs, btrfs, ntfs, fat) in a volume at DIR, an existing directory, until "cleave lun umount": the files as they were when SRC
was split off, or of a snapshot, as they were at the snapshot. The host's kernel never sees the guest's file system: it asks a
process of Cleave's for names and bytes (FUSE), and a further one, which may do nothing else, reads the file system.

Owners, modes, times, links, extended attributes and holes are the guest's. It is read-only, nosuid, nodev and noexec. An ordinary user
needs fusermount3. Only who mounts it may look, whatever the files' modes say; with --allow-other all may to whom the modes and access
control lists allow it (an ordinary user needs user_allow_other in /etc/fuse.conf for that).

If the process dies, reading DIR fails and does not hang; umount, or another mount at DIR, clears that away.`,
		Example: `  cleave lun mount disk.img vg/snap /mnt
  cleave lun mount a.img b.img 8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq ./files
  cleave lun umount ./files`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 3 {
				return usagef("%s needs a SRC, a VOLUME and a DIR, as in disk.img vg/snap /mnt", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) (err error) {
			n := len(args)
			if o.Sources, err = a.sources(c.Context(), &from, args[:n-2]); err != nil {
				return err
			}
			o.Volume, o.Dir = args[n-2], args[n-1]
			warnings, err := a.parts.Mount(c.Context(), o)
			for _, w := range warnings {
				say(a.Err, "warning", w)
			}
			if errors.Is(err, open.ErrNoFileSystem) {
				return hint(err, "`cleave lun inspect SRC` lists partitions and volumes, one of which may have it")
			}
			return err
		},
	}
	from.add(c.Flags())
	c.Flags().BoolVar(&o.Others, "allow-other", false, "let other users look as well, as far as the files' modes let them")
	return c
}

func (a *app) lunUmountCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "umount DIR…",
		Short: "Take a mount of files away",
		Long: `Take mounts of "cleave lun mount" away, also those whose process has died. One that is in use is left as it is, with exit status 5; where
nothing is mounted is success.`,
		Example: `  cleave lun umount /mnt`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs a directory; `findmnt -t fuse.cleave-files` lists them", c.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, dir := range args {
				errs = append(errs, a.parts.Unmount(dir))
			}
			return errors.Join(errs...)
		},
	}
}
