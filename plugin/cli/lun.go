package cli

import (
	"context"
	"errors"
	"io/fs"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// lunCommand is `cleave lun`: tools for what is inside a LUN. They need neither
// daemon; what they open is opened for reading only, but for lun serve and lun
// attach.
func (a *app) lunCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lun",
		Short: "Look into a LUN and bring back the snapshots inside it",
		Long: `Look into a LUN: partitions, LVM volume groups, and the snapshots that a guest made inside its own disk.

SRC is a file, a block device, a LUN of any iSCSI target as iscsi://[USER@]HOST[:PORT]/IQN/LUN, which needs no help of the kernel, an export of an
NBD server as nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, or a disk of a snapshot set as SET/VM/DISK (recovered) or
SET/VM/DISK/split (as it came off), which "cleave snapshot show SET" lists.
It is opened for reading only (but for lun serve, lun nbd --writable and lun attach --writable); nothing is mounted or activated. Give it
several times where a volume group spans several disks. The content of a virtual disk (qcow2, VHDX, VMDK, VHD) is meant, not the file's own bytes: those are
with --raw. Further files that a virtual disk names, such as its backing file, are opened where they are regular files in SRC's folder. A guest whose disk
is a raw file could write such names into it: use --raw for those.

Volumes have names: "disk" is the whole content, "p1" the first partition, "vg/lv" a logical volume or a snapshot, "snapshot:NAME" the
disk as its container keeps it in a snapshot of that name (qcow2). Among several SRC, disks and partitions are numbered: "1:disk",
"2:p1". A UUID is as good as a name.`,
	}
	if a.parts.OpenDisks != nil {
		c.AddCommand(a.lunInspectCommand(), a.lunSumCommand(), a.lunRecoverCommand())
	}
	if a.parts.OpenFiles != nil {
		c.AddCommand(a.lunLsCommand(), a.lunCpCommand())
	}
	if a.parts.Mount != nil {
		c.AddCommand(a.lunMountCommand(), a.lunUmountCommand())
	}
	if a.parts.ServeLUNs != nil {
		c.AddCommand(a.lunServeCommand())
	}
	if a.parts.Attach != nil {
		c.AddCommand(a.lunAttachCommand(), a.lunDetachCommand(), a.lunAttachedCommand(), a.lunRulesCommand())
	}
	if a.parts.ServeNBD != nil {
		c.AddCommand(a.lunNBDCommand())
	}
	return c
}

// sourceFlags say how SRC is looked at.
type sourceFlags struct {
	raw      bool
	snapshot string
	loginFlags
}

func (s *sourceFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&s.raw, "raw", false, "take SRC's own bytes for the disk, even where they look like a virtual disk's")
	f.StringVar(&s.snapshot, "container-snapshot", "", "look at the virtual disk as it was at its container's snapshot of that name or ID (qcow2)")
	s.loginFlags.add(f)
}

func (a *app) sources(ctx context.Context, s *sourceFlags, paths []string) (LUNSources, error) {
	if s.raw && s.snapshot != "" {
		return LUNSources{}, usagef("--raw and --container-snapshot exclude each other: only a virtual disk's container has snapshots")
	}
	paths, names, err := a.disksOfSets(ctx, paths)
	if err != nil {
		return LUNSources{}, err
	}
	if len(names) > 0 && s.snapshot != "" {
		return LUNSources{}, usagef("--container-snapshot is for containers; what a snapshot set shows is the disk in it")
	}
	login, err := s.login(paths)
	login.Identities = names
	// A set's LUN is the disk: a guest could write the first bytes of a container.
	return LUNSources{Paths: paths, Raw: s.raw || len(names) > 0, Snapshot: s.snapshot, Login: login}, err
}

// withDisks opens volumes on the sources (none named: all), and closes them
// after fn.
func (a *app) withDisks(ctx context.Context, s LUNSources, fn func(Disks) error, volumes ...string) (err error) {
	d, err := a.parts.OpenDisks(ctx, s, volumes...)
	if err != nil {
		return lunError(err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	for _, w := range d.Warnings {
		say(a.Err, "warning", w.Error())
	}
	return lunError(fn(d))
}

// lunError gives errors of the recovery packages their place in the table of
// exit statuses and their hint.
func lunError(err error) error {
	switch {
	case errors.Is(err, open.ErrNotFound):
		return hint(&hinted{err: err, is: orchestrator.ErrNotFound}, "`cleave lun inspect SRC` lists the volumes and their UUIDs")
	case errors.Is(err, recovery.ErrChoice):
		return hint(&hinted{err: err, is: errUsage}, "`cleave lun inspect SRC` lists the snapshots and their UUIDs")
	case errors.Is(err, recovery.ErrNoSnapshot):
		return hint(&hinted{err: err, is: orchestrator.ErrNotFound}, "`cleave lun inspect SRC` shows what there is")
	case errors.Is(err, open.ErrOtherFile):
		return hint(err, "only regular files in SRC's folder are opened, and written only where --also names them: put the file there, or give SRC --raw")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return hint(err, "SRC is a file or a block device that you may read; check its path")
	case errors.Is(err, fs.ErrExist):
		return hint(err, "nothing is overwritten: choose another name, or remove the file first")
	}
	return err
}

func lunSource(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a SRC: a file, a block device or an iscsi:// URL", c.CommandPath())
	}
	return nil
}
