"""The options of container engines: which take a value, and which are switches.

Read from ``docker run --help`` (28.2), ``podman run --help`` (4.3) and the documentation of newer
podman, nerdctl 2, Compose 2 and Apptainer 1.4.
"""

from __future__ import annotations


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


SWITCHES = _set(
    "detach disable-content-trust env-host help http-proxy init interactive no-healthcheck "
    "no-hostname no-hosts oom-kill-disable passwd privileged publish-all quiet read-only "
    "read-only-tmpfs replace rm rmi rootfs sig-proxy tls-verify tty unsetenv-all "
    "use-api-socket"
)
VALUES = _set(
    "add-host annotation arch attach authfile blkio-weight blkio-weight-device cap-add cap-drop "
    "cgroup-conf cgroup-parent cgroupns cgroups chrootdirs cidfile conmon-pidfile cpu-count "
    "cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus "
    "cpuset-mems creds cdi-spec-dir decryption-key detach-keys device device-cgroup-rule "
    "device-read-bps device-read-iops device-write-bps device-write-iops dns dns-opt dns-option "
    "dns-search domainname entrypoint env env-file env-merge expose gidmap gpus group-add "
    "group-entry health-cmd health-interval health-log-destination health-max-log-count "
    "health-max-log-size health-on-failure health-retries health-start-interval "
    "health-start-period health-startup-cmd health-startup-interval health-startup-retries "
    "health-startup-success health-startup-timeout health-timeout hostname hosts-file hostuser "
    "image-volume init-binary init-ctr init-path io-maxbandwidth io-maxiops ip ip6 ipc isolation "
    "kernel-memory label label-file link link-local-ip log-driver log-opt mac-address memory "
    "memory-reservation memory-swap memory-swappiness mount name namespace net net-alias network "
    "network-alias oom-score-adj os passwd-entry personality pid pidfile pids-limit platform pod "
    "pod-id-file preserve-fd preserve-fds publish pull rdt-class requires restart retry "
    "retry-delay runtime sdnotify seccomp-policy secret security-opt shm-size shm-size-systemd "
    "snapshotter stop-signal stop-timeout storage-opt subgidname subuidname sysctl systemd timeout "
    "tmpfs tz uidmap ulimit umask unsetenv user userns uts variant volume volume-driver "
    "volumes-from workdir"
)
SHORT = {
    "a": "attach", "c": "cpu-shares", "d": "detach", "e": "env", "h": "hostname",
    "i": "interactive", "l": "label", "m": "memory", "p": "publish", "P": "publish-all",
    "q": "quiet", "t": "tty", "u": "user", "v": "volume", "w": "workdir",
}  # fmt: skip
COMPOSE_SWITCHES = _set(
    "build detach help interactive no-TTY no-deps quiet quiet-build quiet-pull remove-orphans rm "
    "service-ports use-aliases"
)
COMPOSE_VALUES = _set(
    "cap-add cap-drop entrypoint env env-from-file label name publish pull user volume workdir"
)
COMPOSE_SHORT = {**SHORT, "T": "no-TTY"}
APPTAINER_SWITCHES = _set(
    "allow-setuid cleanenv compat contain containall disable-cache fakeroot hostname-none ipc "
    "keep-privs net no-eval no-home no-https no-init no-mount-tmp no-privs no-umask nohttps nv "
    "nvccli passphrase pid rocm unsquash userns uts vm writable writable-tmpfs no-pid "
    "underlay"
)
APPTAINER_VALUES = _set(
    "add-caps app apply-cgroups bind blkio-weight blkio-weight-device cpu-shares cpus cpuset-cpus "
    "cpuset-mems cwd dns docker-host drop-caps env env-file fuse-mount home hostname memory "
    "memory-reservation memory-swap mount network network-args no-mount oom-kill-disable overlay "
    "pem-path pids-limit pwd scratch security shell workdir"
)
APPTAINER_SHORT = {
    "B": "bind", "H": "home", "S": "scratch", "W": "workdir", "o": "overlay", "C": "containall",
    "c": "contain", "e": "cleanenv", "f": "fakeroot", "i": "ipc", "n": "net", "p": "pid",
    "u": "userns", "w": "writable",
}  # fmt: skip
# Options before `run`, of the engine itself.
GLOBAL_VALUES = _set(
    "config context host log-level tlscacert tlscert tlskey cgroup-manager conmon connection "
    "events-backend hooks-dir identity namespace network-cmd-path network-config-dir root runroot "
    "runtime runtime-flag ssh storage-driver storage-opt tmpdir url volumepath address snapshotter "
    "data-root cni-path cni-netconfpath hosts-dir file project-name profile env-file "
    "project-directory ansi parallel progress"
)
GLOBAL_SHORT = {"c", "H", "l", "f", "p", "n", "a"}
