"""Cinder in one process: API, scheduler and volume manager over a fake message
bus and SQLite, for tests. Debian's packages, nothing of them changed on disk.

    cinder-process.py CINDER.CONF READY-FILE [SOCKET]

CINDER.CONF has osapi_volume_listen_port; READY-FILE appears when requests are
answered. Commands about storage are performed by whoever listens on SOCKET. It
ends when its standard input does.
"""
import json
import os
import socket
import sys

import eventlet
from eventlet import tpool
eventlet.monkey_patch()

from oslo_concurrency import processutils  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402

from cinder.common import config  # noqa: E402,F401
from cinder.common import constants  # noqa: E402
from cinder import context  # noqa: E402
from cinder.db import migration  # noqa: E402
from cinder import objects  # noqa: E402
from cinder import rpc  # noqa: E402
from cinder import service  # noqa: E402
from cinder import version  # noqa: E402

CONF = cfg.CONF


class Service(service.Service):
    """A Service that shares its process: Cinder keeps service_id in the class,
    where the one that starts last overwrites the others' (a report then
    renews the wrong row, and the volume service counts as down after 60 s)."""

    def report_state(self):
        service.Service.service_id = self.origin_service_id
        super().report_state()


def fakes():
    """Cinder's fake driver as back ends worth testing against: with room, and
    under names of their own. They are the control plane only and hold no data."""
    from cinder.tests import fake_driver

    class Plain(fake_driver.FakeLoggingVolumeDriver):
        consistent = False

        def _update_volume_stats(self):
            super()._update_volume_stats()
            own = {'volume_backend_name':
                   self.configuration.safe_get('volume_backend_name')}
            if self.consistent:
                own['consistent_group_snapshot_enabled'] = True
            self._stats.update(own)
            for p in self._stats.get('pools', []):
                p.update(own, reserved_percentage=0)

        def initialize_connection(self, volume, connector):
            got = super().initialize_connection(volume, connector)
            got['data'].update(
                target_iqn='iqn.2010-10.org.openstack:%s' % volume.name,
                target_portal='192.0.2.1:3260', target_lun=1,
                volume_id=volume.id, auth_method='CHAP',
                auth_username='lab-user', auth_password='lab-chap-secret')
            return got

    class Consistent(Plain):
        consistent = True

    fake_driver.PlainFake, fake_driver.ConsistentFake = Plain, Consistent


STORAGE = {'lvm', 'lvs', 'vgs', 'pvs', 'lvcreate', 'lvremove', 'lvchange',
           'lvconvert', 'lvextend', 'lvrename', 'lvdisplay', 'vgdisplay',
           'udevadm', 'tgtadm', 'tgt-admin', 'dd', 'blockdev'}


def elsewhere(path):
    """Sends commands about storage to another machine, and lets what Cinder
    does as root happen in this process, where that is seen to."""
    here = processutils.execute

    def execute(*cmd, **options):
        words = [str(c) for c in cmd]
        program = [w for w in words if w != 'env' and '=' not in w][0]
        if os.path.basename(program) not in STORAGE:
            return here(*cmd, **options)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.sendall(json.dumps({'args': words}).encode() + b'\n')
            answer = json.loads(s.makefile().readline())
        expected = options.get('check_exit_code', [0])
        if isinstance(expected, bool):
            expected = [0] if expected else [answer['status']]
        elif isinstance(expected, int):
            expected = [expected]
        if answer['status'] not in expected:
            raise processutils.ProcessExecutionError(
                exit_code=answer['status'], stdout=answer['stdout'],
                stderr=answer['stderr'], cmd=' '.join(words))
        return answer['stdout'], answer['stderr']

    processutils.execute = execute
    import cinder.privsep
    import os_brick.privileged
    cinder.privsep.sys_admin_pctxt.set_client_mode(False)
    os_brick.privileged.default.set_client_mode(False)


def main():
    conf, ready = sys.argv[1:3]
    if sys.argv[3:]:
        elsewhere(sys.argv[3])
    objects.register_all()
    logging.register_options(CONF)
    CONF(['--config-file', conf], project='cinder',
         version=version.version_string())
    logging.setup(CONF, 'cinder')
    priv_context.init(root_helper=['sudo', '-n'] if os.geteuid() else ['env'])
    fakes()
    # Between processes what the scheduler says would become a plain dict.
    from cinder.scheduler import host_manager
    host_manager.ReadOnlyDict.copy = lambda self: dict(self)
    migration.db_sync()
    rpc.init(CONF)
    from cinder import coordination
    coordination.COORDINATOR.start()
    ctx = context.get_admin_context()
    services = [Service.create(binary=constants.SCHEDULER_BINARY,
                               topic=constants.SCHEDULER_TOPIC,
                               manager='cinder.scheduler.manager.SchedulerManager')]
    backend_opt = cfg.StrOpt('backend_host')
    for backend in CONF.enabled_backends:
        CONF.register_opt(backend_opt, group=backend)
        services.append(Service.create(
            host='%s@%s' % (CONF.host, backend), service_name=backend,
            binary=constants.VOLUME_BINARY, coordination=False))
    for s in services:
        s.start()
    from cinder.volume import volume_types
    from cinder.volume import group_types
    specs = {'consistent_group_snapshot_enabled': '<is> True'}
    if not group_types.get_all_group_types(ctx).get('cleave'):
        group_types.create(ctx, 'cleave', specs)
    for backend in CONF.enabled_backends:
        if backend not in volume_types.get_all_types(ctx):
            volume_types.create(ctx, backend, {'volume_backend_name': backend})
    api = service.WSGIService('osapi_volume')
    api.start()
    with open(ready + '.new', 'w') as f:
        f.write('ready\n')
    os.rename(ready + '.new', ready)
    while tpool.execute(os.read, 0, 1):
        pass
    os._exit(0)


main()
