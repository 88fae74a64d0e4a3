package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cleave-san/cleave/iscsi"
)

// AttachOptions is what `cleave lun attach` was told.
type AttachOptions struct {
	Sources  LUNSources
	Portals  []string // further ones of the same target: paths
	Writable bool
	Method   string // auto, iscsi, nbd or fuse
	// Volume whose content is meant; "": the whole disk's.
	Volume string
	// Recover shows the disk with volumes put back to their in-guest snapshots:
	// Snapshots by UUID or name, none: every volume that has exactly one. What
	// is written is kept in Overlay until it is detached.
	Recover   bool
	Snapshots []string
	Overlay   string
}

// Attachment is a source as a block device of this host.
type Attachment struct {
	Device   string    `json:"device"`
	Source   string    `json:"source"`
	Method   string    `json:"method"`
	Writable bool      `json:"writable"`
	Size     int64     `json:"size"` // bytes
	Since    time.Time `json:"since"`
	State    string    `json:"state"`
	ID       string    `json:"id"`
	Identity string    `json:"identity,omitempty"`
	Paths    []string  `json:"paths,omitempty"`
	Warning  string    `json:"warning,omitempty"`
}

// attachFlags are those of `cleave lun attach`.
type attachFlags struct {
	o       AttachOptions
	volumes []string
	from    sourceFlags
}

func (t *attachFlags) add(f *pflag.FlagSet) {
	t.from.add(f)
	f.BoolVar(&t.o.Writable, "writable", false, "let the host write: to SRC itself, or with --recover to files that are gone in the end")
	f.StringVar(&t.o.Method, "method", "auto", "auto, iscsi (the host's initiator, for a SRC that is an iscsi:// URL), nbd (the kernel's client) or fuse (a loop device)")
	f.StringArrayVar(&t.o.Portals, "portal", nil, "with --method iscsi: a further HOST[:PORT] of the same target, for multipath; repeat it for several")
	f.StringArrayVar(&t.volumes, "volume", nil, "name or UUID of the one volume to attach; with --recover of a snapshot to put back, repeated for several")
	f.BoolVar(&t.o.Recover, "recover", false, "attach the disk with volumes put back to their in-guest snapshots")
	f.StringVar(&t.o.Overlay, "overlay", "", "with --recover: directory for what is written (default: the system's for temporary files)")
}

func (t *attachFlags) options(ctx context.Context, a *app, args []string) (o AttachOptions, err error) {
	if t.o.Sources, err = a.sources(ctx, &t.from, args); err != nil {
		return o, err
	}
	o = t.o
	switch o.Method {
	case "auto", "iscsi", "nbd", "fuse":
	default:
		return o, usagef("--method %q: want auto, iscsi, nbd or fuse", o.Method)
	}
	switch {
	case !o.Recover && len(t.volumes) > 1:
		return o, usagef("one device has one volume: --volume is there %d times", len(t.volumes))
	case !o.Recover && len(t.volumes) == 1:
		o.Volume = t.volumes[0]
	case o.Recover:
		o.Snapshots = t.volumes
	}
	switch {
	case o.Volume == "" && len(args) > 1:
		return o, usagef("one device is made at a time: name one SRC, or a --volume that spans them")
	case o.Volume != "" && o.Writable:
		return o, usagef("--volume is for reading; to write, attach the whole SRC, or --recover it")
	case o.Overlay != "" && !(o.Recover && o.Writable):
		return o, usagef("--overlay goes with --recover --writable")
	case o.Recover && o.Sources.Snapshot != "":
		return o, usagef("--container-snapshot does not go with --recover")
	case len(o.Portals) > 0 && o.Method != "iscsi" && o.Method != "auto":
		return o, usagef("--portal is for --method iscsi")
	}
	for i, p := range o.Portals {
		if o.Portals[i], err = iscsi.HostPort(p); err != nil {
			return o, usagef("--portal: %w", err)
		}
	}
	return o, nil
}

func (a *app) lunAttachCommand() *cobra.Command {
	var t attachFlags
	c := &cobra.Command{
		Use:   "attach SRC…",
		Short: "Make a LUN, an image or a recovered disk a block device of this host",
		Long: `Make SRC a block device of this host, read-only unless --writable is given, and print its name. It stays until
"cleave lun detach", or a restart of the host.

A LUN (iscsi://[USER@]HOST[:PORT]/IQN/LUN) is attached by the host's own initiator (open-iscsi) where that is there, with several
--portal by multipath; everything else, and LUNs with --volume or --recover, by a process of its own that the kernel asks for the
blocks: by its NBD client where it has one, else by a FUSE file with a loop device on it. If that process dies, reads and
writes of the device fail; they do not hang.

What a virtual disk (qcow2, VHDX, VMDK, VHD) holds is attached for reading; --writable is for the bytes of SRC themselves. --volume attaches
the content of one volume, --recover the whole disk as it was at its in-guest snapshots: an ordinary kernel activates and
mounts that, with --writable. It is a stranger's disk all the same: mount it only if you trust the guest.

Nothing on this host takes the device up by itself where the udev rules of "cleave lun udev-rules" are installed.`,
		Example: `  cleave lun attach disk.qcow2
  cleave lun attach /dev/sdc --volume vg/cleave-data
  cleave lun attach iscsi://user@array/IQN/1 --portal array2 --src-chap-secret-file FILE --writable`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			o, err := t.options(c.Context(), a, args)
			if err != nil {
				return err
			}
			at, err := a.parts.Attach.Attach(c.Context(), o)
			if err != nil {
				return lunError(err)
			}
			if at.Warning != "" {
				say(a.Err, "warning", at.Warning)
			}
			return a.print(result{value: at, names: []string{at.Device}, text: func(w io.Writer, _ *paper) error {
				_, err := fmt.Fprintln(w, at.Device)
				return err
			}})
		},
	}
	t.add(c.Flags())
	return c
}

func (a *app) lunDetachCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "detach DEVICE|SRC…",
		Short: "Take an attached block device away",
		Long: `Take block devices of "cleave lun attach" away: flush them, and leave no device, process, mount or session behind. A device that
is in use is left as it is, with exit status 5 and the names of those who use it.

What a crash of this host or of "cleave lun attach" has left goes the same way. What is not attached is success.`,
		Example: `  cleave lun detach /dev/loop3
  cleave lun detach disk.qcow2`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs a device or a SRC; `cleave lun attached` lists them", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var errs []error
			for _, what := range args {
				if err := a.parts.Attach.Detach(c.Context(), what); err != nil {
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) lunAttachedCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attached",
		Short: "List the block devices that are attached",
		Long: `List the block devices of "cleave lun attach" and how they are: attached; attaching, by a process that works on it; dead, where its
process has died and the device gives I/O errors; incomplete, where "cleave lun attach" was killed; gone, from before a restart of
the host. "cleave lun detach" clears away all of them.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.parts.Attach.List()
			if err != nil {
				return err
			}
			var names []string
			t := table{head: []string{"DEVICE", "STATE", "SOURCE", "SIZE", "ACCESS", "METHOD", "SINCE", "+ID"}}
			for _, at := range all {
				name := at.Device
				if name == "" {
					name = at.ID
				}
				names = append(names, name)
				access := "read-only"
				if at.Writable {
					access = "writable"
				}
				t.add(at.Device, at.State, at.Source, size(at.Size), access, at.Method, at.Since.Format(time.RFC3339), at.ID)
			}
			return a.print(result{value: list("attachments", all), names: names, text: func(w io.Writer, p *paper) error {
				p.draw(w, t)
				return nil
			}})
		},
	}
}

func (a *app) lunRulesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "udev-rules",
		Short: "Print the udev rules that keep this host off attached devices",
		Long: `Print the rules by which udev keeps LVM, md, udisks and, where no multipath was asked for, multipathd off devices that
"cleave lun attach" makes. They are installed once, as root; "cleave doctor" checks them.`,
		Example: `  cleave lun udev-rules >/etc/udev/rules.d/59-cleave-attach.rules && udevadm control --reload`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.Out.Write(a.parts.Attach.Rules())
			return err
		},
	}
}
