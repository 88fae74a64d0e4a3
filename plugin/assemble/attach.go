package assemble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/lun/attach"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/cli"
)

// attacher is a cli.Attach on this host.
type attacher struct{}

var _ cli.Attach = attacher{}

func (attacher) Rules() []byte               { return attach.Rules }
func (attacher) CheckRules() (string, error) { return attach.CheckRules() }

// Attach implements cli.Attach.
func (attacher) Attach(ctx context.Context, o cli.AttachOptions) (cli.Attachment, error) {
	paths := slices.Clone(o.Sources.Paths)
	for i, p := range paths {
		if !isLUN(p) {
			paths[i] = absolute(p)
		}
	}
	var err error
	o.Sources.Paths = paths
	if o.Sources.Login.Identities, err = identities(ctx, o.Sources); err != nil {
		return cli.Attachment{}, err
	}
	if o.Overlay != "" {
		o.Overlay = absolute(o.Overlay)
	}
	what, err := json.Marshal(o)
	if err != nil {
		return cli.Attachment{}, err
	}
	r := attach.Request{Source: strings.Join(paths, " "), Open: what, LUNs: slices.Sorted(maps.Values(o.Sources.Login.Identities)), Writable: o.Writable, Method: attach.Method(o.Method)}
	if len(paths) == 1 && strings.HasPrefix(paths[0], iscsi.Scheme) && o.Volume == "" && !o.Recover && o.Method != string(attach.NBD) && o.Method != string(attach.FUSE) {
		if r.LUN, err = hostLUN(o); err != nil {
			return cli.Attachment{}, err
		}
	}
	if len(o.Portals) > 0 && r.LUN == nil {
		return cli.Attachment{}, usage("--portal is for a LUN that the host's own initiator attaches")
	}
	h, err := attach.New(attach.Options{})
	if err != nil {
		return cli.Attachment{}, err
	}
	a, err := h.Attach(ctx, r)
	if err != nil {
		return cli.Attachment{}, attachError(err)
	}
	if _, err := attach.CheckRules(); err != nil {
		a.Warning = strings.TrimPrefix(a.Warning+"; "+err.Error(), "; ")
	}
	return attachment(a), nil
}

// identities asks LUNs who they are, by their URLs. It is asked before anything
// is attached: what is recorded of an attachment from its first moment says
// whose LUNs it stands on, and no other LUN can come in their place later.
func identities(ctx context.Context, from cli.LUNSources) (map[string]string, error) {
	ids := map[string]string{}
	for _, p := range from.Paths {
		if !isLUN(p) {
			continue
		}
		d, err := openLUN(ctx, p, from.Login, false)
		if err != nil {
			return nil, err
		}
		ids[p] = d.ID()
		if err := d.Close(); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// Detach implements cli.Attach.
func (attacher) Detach(ctx context.Context, what string) error {
	h, err := attach.New(attach.Options{})
	if err != nil {
		return err
	}
	if _, err = h.Detach(ctx, what); errors.Is(err, attach.ErrNotAttached) {
		return nil
	}
	return attachError(err)
}

// List implements cli.Attach.
func (attacher) List() ([]cli.Attachment, error) {
	h, err := attach.New(attach.Options{})
	if err != nil {
		return nil, err
	}
	all, err := h.List()
	var out []cli.Attachment
	for _, a := range all {
		out = append(out, attachment(a))
	}
	return out, err
}

func attachment(a attach.Attachment) cli.Attachment {
	return cli.Attachment{
		Device: a.Device, Source: a.Source, Method: string(a.Method), Writable: a.Writable, Size: a.Size, Since: a.Since,
		State: string(a.State), ID: a.ID, Identity: a.Identity, Paths: a.Paths, Warning: a.Warning,
	}
}

// attachError gives errors of attaching their place among ours. Those of a
// helper bring their kind's name.
func attachError(err error) error {
	kind := (interface{ Kind() string })(nil)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, attach.ErrBusy):
		return fmt.Errorf("%w: %w", err, &hinted{orchestrator.ErrBusy, "end what uses it, then detach it again"})
	case errors.Is(err, attach.ErrUnsupported):
		return fmt.Errorf("%w: %w", err, &hinted{orchestrator.ErrUsage, "leave --method away, or choose another"})
	case errors.Is(err, attach.ErrAmbiguous):
		return fmt.Errorf("%w: %w", err, &hinted{orchestrator.ErrUsage, "`cleave lun attached` lists the devices"})
	case errors.As(err, &kind):
		for _, k := range kinds {
			if k.name == kind.Kind() {
				return fmt.Errorf("%w: %w", err, k.err)
			}
		}
	}
	return err
}

// kinds of errors, by which a command line's exit status is chosen, as they
// cross from a helper.
var kinds = []struct {
	name string
	err  error
}{
	{"usage", orchestrator.ErrUsage},
	{"busy", orchestrator.ErrBusy},
	{"not permitted", orchestrator.ErrNotPermitted},
	{"not permitted", fs.ErrPermission},
	{"unreachable", orchestrator.ErrUnreachable},
	{"timeout", orchestrator.ErrTimeout},
	{"not found", orchestrator.ErrNotFound},
	{"not found", open.ErrNotFound},
	{"not found", recovery.ErrNoSnapshot},
	{"not found", fs.ErrNotExist},
	{"usage", recovery.ErrChoice},
}

// told is an error that names its kind.
type told struct{ error }

func (t told) Unwrap() error { return t.error }
func (t told) Kind() string {
	for _, k := range kinds {
		if errors.Is(t.error, k.err) {
			return k.name
		}
	}
	return ""
}

// openAttached opens what a helper serves: in the helper.
func openAttached(ctx context.Context, what json.RawMessage, writable bool) (attach.Opened, error) {
	var o cli.AttachOptions
	if err := json.Unmarshal(what, &o); err != nil {
		return attach.Opened{}, err
	}
	var d attach.Opened
	var err error
	switch {
	case o.Recover:
		d, err = attachView(ctx, o)
	case writable || o.Sources.Raw && o.Volume == "":
		d, err = attachBytes(ctx, o, writable)
	default:
		d, err = attachVolume(ctx, o)
	}
	if err != nil {
		return attach.Opened{}, told{err}
	}
	return d, nil
}

// attachBytes is the source itself. A virtual disk is not written to as if it
// were none.
func attachBytes(ctx context.Context, o cli.AttachOptions, writable bool) (attach.Opened, error) {
	path := o.Sources.Paths[0]
	if writable && !o.Sources.Raw {
		r, _, err := inspectDisks(ctx, o.Sources)
		if err != nil {
			return attach.Opened{}, err
		}
		for _, d := range r.Disks {
			if d.Container != "" && d.Container != "raw" {
				return attach.Opened{}, usage("%s is a virtual disk (%s), whose content is attached for reading only: --raw means its own bytes, --recover a view that can be written to", path, d.Container)
			}
		}
	}
	if isLUN(path) {
		d, err := openLUN(ctx, path, o.Sources.Login, writable)
		if err != nil {
			return attach.Opened{}, err
		}
		return attach.Opened{Device: d, Closer: synced{d}}, nil
	}
	d, err := openDisk(path, writable)
	if err != nil {
		return attach.Opened{}, err
	}
	return attach.Opened{Device: d, Closer: d}, nil
}

// attachVolume is the content of a volume, read by way of a worker.
func attachVolume(ctx context.Context, o cli.AttachOptions) (attach.Opened, error) {
	volume := o.Volume
	if volume == "" {
		volume = "disk"
	}
	disks, err := openDisks(ctx, o.Sources, volume)
	if err != nil {
		return attach.Opened{}, err
	}
	d, err := disks.Volumes[0].Open(ctx)
	if err != nil {
		return attach.Opened{}, errors.Join(err, disks.Close())
	}
	return attach.Opened{Device: d, Closer: after{d, disks.Close}}, nil
}

// attachView is a disk with volumes put back to their snapshots.
func attachView(ctx context.Context, o cli.AttachOptions) (attach.Opened, error) {
	spec, closeFiles, err := sources(ctx, o.Sources)
	if err != nil {
		return attach.Opened{}, err
	}
	closers := []func() error{closeFiles}
	closeAll := func() error {
		var errs []error
		for _, c := range slices.Backward(closers) {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	fail := func(err error) (attach.Opened, error) { return attach.Opened{}, errors.Join(err, closeAll()) }
	dir, err := os.MkdirTemp("", "cleave-")
	if err != nil {
		return fail(fmt.Errorf("directory of the recovery worker's socket: %w", err))
	}
	defer os.RemoveAll(dir) // nobody else is to connect
	spec.Snapshots, spec.ReadOnly, spec.OverlayDir, spec.Socket = o.Snapshots, !o.Writable, o.Overlay, filepath.Join(dir, "view")
	w, err := worker.Start(ctx, spec)
	if err != nil {
		return fail(err)
	}
	closers = append(closers, w.Close)
	c, err := nbd.Dial(ctx, "unix", w.Address(), nbd.ClientOptions{Export: w.Exports[0].Name, Timeout: viewTimeout})
	if err != nil {
		return fail(fmt.Errorf("recovered view: %w", err))
	}
	closers = append(closers, c.Close)
	return attach.Opened{Device: c, Closer: closing(closeAll)}, nil
}

type closing func() error

func (c closing) Close() error { return c() }

var _ io.Closer = closing(nil)

// hostLUN is a LUN as the host's own initiator reaches it, nil where Auto leaves
// it to ours.
func hostLUN(o cli.AttachOptions) (*attach.LUN, error) {
	asked := o.Method == string(attach.ISCSI)
	if err := attach.Supports(attach.ISCSI); err != nil {
		if asked {
			return nil, attachError(err)
		}
		return nil, nil
	}
	u, err := iscsi.ParseURL(o.Sources.Paths[0])
	if err != nil {
		return nil, usage("%w", err)
	}
	login := o.Sources.Login
	if login.Initiator != "" {
		name, err := hostInitiator(initiatorFile)
		if err != nil {
			return nil, err
		}
		if name != login.Initiator && !asked {
			return nil, nil
		}
		if name != login.Initiator {
			return nil, usage("--src-initiator %s: the host's own initiator logs in as %s", login.Initiator, name)
		}
	}
	return &attach.LUN{
		Target: string(u.Target), Portals: append([]string{u.Portal}, o.Portals...), Number: u.LUN,
		User: u.User, Secret: login.Secret, MutualUser: login.MutualUser, MutualSecret: login.MutualSecret,
		Identity: login.Identities[o.Sources.Paths[0]], Identify: initiator.Identify,
	}, nil
}
